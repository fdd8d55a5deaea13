"""A data set of audio gets a column of codes: `datasets.map` with AudioTokenizer, saved to disk or pushed to the Hub.

    python examples/map_dataset.py my-recordings my-codes                # a folder of audio
    python examples/map_dataset.py user/speech my-codes --split train    # a data set of the Hub
    python examples/map_dataset.py my-recordings my-codes --push-to-hub user/codes

Other columns stay; the audio goes, unless `--keep-audio`. A second run takes the codes of a Hub data set from the cache
of `datasets`. At the end the first example is decoded, so that you can listen. For corpora of many hours see
`mimi-hf tokenize`, which goes on where it was stopped and runs on many machines.
"""

import argparse
from pathlib import Path

import datasets

from mimi_hf import AudioDetokenizer, AudioTokenizer, mimi_tiny_path

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of audio files, or the id of a data set on the Hub")
    parser.add_argument("output", type=Path, help="the folder for the data set of codes")
    parser.add_argument("--split", default="train")
    parser.add_argument("--num-quantizers", type=int, default=8, help="codebooks")
    parser.add_argument("--num-proc", type=int, help="processes")
    parser.add_argument("--keep-audio", action="store_true")
    parser.add_argument("--push-to-hub", metavar="USER/NAME")
    parser.add_argument("--model", default=str(mimi_tiny_path()), help="for example kyutai/mimi")
    args = parser.parse_args()

    if Path(args.source).is_dir():
        files = sorted(path for path in Path(args.source).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            parser.error(f"{args.source} has no audio files.")
        columns = {"name": [path.stem for path in files], "audio": [str(path) for path in files]}
        recordings = datasets.Dataset.from_dict(columns)
    else:
        recordings = datasets.load_dataset(args.source, split=args.split)
    tokenizer = AudioTokenizer(args.model, num_quantizers=args.num_quantizers)
    codes = recordings.map(
        tokenizer,
        batched=True,
        num_proc=args.num_proc,
        features=tokenizer.output_features(recordings.features),
    )
    if not args.keep_audio:
        codes = codes.remove_columns("audio")
    codes.save_to_disk(args.output)
    if args.push_to_hub:
        codes.push_to_hub(args.push_to_hub)

    saved = datasets.load_from_disk(args.output)
    frames = sum(len(example["audio_codes"][0]) for example in saved)
    print(f"{len(saved)} recordings, {frames} frames of {args.num_quantizers} codes: {args.output}")
    listen = args.output.with_name(f"{args.output.name}-first.flac")
    listen.write_bytes(AudioDetokenizer(args.model)(saved[0])["audio"]["bytes"])
    print(f"The first one, decoded: {listen}")


if __name__ == "__main__":
    main()
