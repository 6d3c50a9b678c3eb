"""The engine `Chunked`, for cells whose state is a matrix."""
