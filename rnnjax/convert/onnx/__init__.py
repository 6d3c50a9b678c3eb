"""ONNX: networks from files of its RNN, LSTM and GRU nodes, and into such files."""
