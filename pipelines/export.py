"""Hand an encoder on: `python pipelines/export.py run=DIR|FILE to=onnx|torchscript|torch.export|timm|huggingface
output=DIR`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("export")
