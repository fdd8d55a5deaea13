"""What torch.compile needs on this machine."""

import shutil

import pytest

needs_compiler = pytest.mark.skipif(not shutil.which("g++") and not shutil.which("c++"), reason="needs a C++ compiler")
