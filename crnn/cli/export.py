"""`crnn export`: a model in other programs' formats."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crnn.cli.options import HelpFormatter, check_apart, load_model, note, require_vocabulary

if TYPE_CHECKING:
    from crnn.language_model import LanguageModel

_DESCRIPTION = """\
Write a model in another format, chosen by the suffix of OUT:

  .onnx   a graph for ONNX Runtime and others: ids and states in, logits and states out
          (needs the onnx package), in the model's dtype; ONNX Runtime runs float32 only, and a note
          tells how to make a float32 copy of a float64 model
  .npz    NumPy arrays under PyTorch's parameter names

Model files themselves are safetensors under the same names. In either, the arrays of an LSTM and of an RNN mean
what they mean in PyTorch; those of a GRU only with reset_after=True and z_weighs="state", which are not the
defaults. crnn.interop.torch.to_state_dict(crnn.interop.torch.from_safetensors(MODEL, "rnn.")) in Python converts
what PyTorch can compute, and refuses the rest.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "export",
        help="write a model for ONNX Runtime or NumPy",
        description=_DESCRIPTION,
        epilog="example:\n  crnn export comments.safetensors comments.onnx --vocabulary words.json\n",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model file")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write: .onnx or .npz")
    parser.add_argument(
        "--probabilities", action="store_true", help="of an ONNX graph: give probabilities instead of logits"
    )
    parser.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="write the words too, as JSON in the order of ids"
    )
    parser.set_defaults(run=run, threads=None)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    from crnn.atomic import check_writable

    suffix = options.out.suffix.lower()
    if suffix not in (".onnx", ".npz"):
        raise ValueError(f"OUT: got {options.out}, wanted a file name that ends in .onnx or .npz")
    if options.probabilities and suffix != ".onnx":
        raise ValueError("--probabilities: only an ONNX graph computes anything, arrays do not")
    check_writable(options.out, "OUT")
    if options.vocabulary is not None:
        check_writable(options.vocabulary, "--vocabulary")
    check_apart({"OUT": options.out, "--vocabulary": options.vocabulary}, {"MODEL": Path(options.model)})
    model = load_model(options)
    if suffix == ".onnx":
        from crnn.interop.onnx import to_onnx

        to_onnx(model, options.out, output="probabilities" if options.probabilities else "logits")
    else:
        _write_arrays(model, options.out)
    note(f"wrote {options.out}")
    if suffix == ".onnx" and model.dtype == "float64":
        note(
            "note: the graph is float64, as the model is, and ONNX Runtime has no float64 RNN, LSTM or GRU; for it "
            "export a float32 copy: crnn.load(MODEL).copy('float32').save(COPY) in Python"
        )
    if options.vocabulary is not None:
        require_vocabulary(model, options.model).save(options.vocabulary)
        note(f"wrote {options.vocabulary}")
    return 0


def _write_arrays(model: LanguageModel, path: Path) -> None:
    import numpy as np

    from crnn.atomic import atomic_write

    arrays: dict[str, Any] = dict(model.params)
    with atomic_write(path) as stream:
        np.savez(stream, **arrays)
