"""The same recurrent layer in this and in other libraries: a file for each, all behind `layer.AbstractLayer`."""
