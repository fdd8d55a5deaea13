"""How good a codec is: metrics of quality, evaluation of data sets, agreement of two models, pictures."""
