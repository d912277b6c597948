"""Tokenizers for other runtimes: encoder and decoder as ONNX or torch.export graphs, or a folder for the Hub."""

from mmtok.export.write import Report, export

__all__ = ["Report", "export"]
