"""`tritome infer`: one study or NIfTI file straight to Triton; prints millilitres or scores."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from clients.console import out, warn
from clients.errors import ClientError
from clients.infer import (
    Prediction,
    Scored,
    beside,
    predict_array,
    predict_dicom,
    series_in,
    write_report,
    write_segmentations,
)
from clients.nifti import is_nifti, read_nifti, write_nifti


def run(
    source: Path, pipeline: str, triton_url: str, output: Path | None, series: str | None
) -> None:
    """Infers, writes the output, and prints a table of segments.

    Raises:
        ClientError: the input or the wished output can't be used.
        GatewayError: as the gateway's rooms raise it.
    """
    if not source.exists():
        msg = f"{source} doesn't exist"
        raise ClientError(msg)
    wanted = output is not None
    output = output or Path("mask.nii.gz" if is_nifti(source) else "seg.dcm")
    _require_writable_kind(source, output)
    _require_writable(output)
    started = time.monotonic()
    with out.status("Inferring ..."):
        if is_nifti(source):
            prediction, like = _infer_nifti(source, pipeline, triton_url)
        else:
            found = predict_dicom(series_in([source], series), pipeline, triton_url)
            if isinstance(found, Scored):
                _tell_scores(found, output if wanted else Path("report.dcm"))
                return
            prediction, like = found, None
        written = write_prediction(prediction, output, like)
    _print(prediction, written, time.monotonic() - started)


def write_prediction(prediction: Prediction, output: Path, like: Any = None) -> list[Path]:
    """Writes every label map, and in DICOM the scores beside them.

    Args:
        prediction: What came back.
        output: The file's name; several get their output's name added.
        like: nibabel's header of the source, where that was NIfTI.

    Returns:
        What was written.

    Raises:
        ClientError: a file can't be written.
        EncodingFailed: a result can't be made into DICOM.
    """
    if not is_nifti(output):
        return write_segmentations(prediction, output)
    masks = prediction.masks
    named = [(output if len(masks) == 1 else beside(output, one.name), m) for one, m in masks]
    for path, mask in named:
        write_nifti(path, mask, prediction.volume.affine_lps, like=like)
    return [path for path, _ in named]


def _tell_scores(scored: Scored, output: Path) -> None:
    if is_nifti(output):
        msg = f"'{scored.contract.pipeline}' gives scores and no mask; end the output in .dcm"
        raise ClientError(msg)
    _require_writable(output)
    written = write_report(scored, output)
    _print_scores(scored.scores)
    out.print(f"{scored.contract.pipeline} {scored.contract.version}. Wrote {_listed(written)}.")


def _print_scores(scores: Sequence[tuple[str, float]]) -> None:
    table = _table("Finding", "Score")
    for name, score in scores:
        table.add_row(name, f"{score:.3f}")
    out.print(table)


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _table(first: str, second: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    table.add_column(second, justify="right")
    return table


def _infer_nifti(source: Path, pipeline: str, triton_url: str) -> tuple[Prediction, Any]:
    nifti = read_nifti(source)
    if nifti.largest_error:
        warn(
            f"{source.name} holds values that 16-bit integers can't; they are sent with an "
            f"error of at most {nifti.largest_error:.3g}"
        )
    prediction = predict_array(nifti.image, nifti.rescale, nifti.affine_lps, pipeline, triton_url)
    return prediction, nifti.header


def _require_writable_kind(source: Path, output: Path) -> None:
    if is_nifti(output):
        return
    if output.suffix.lower() != ".dcm":
        msg = f"the output is {output.name}; end it in .dcm for a DICOM SEG or .nii.gz for NIfTI"
        raise ClientError(msg)
    if is_nifti(source):
        msg = (
            "a DICOM SEG refers to DICOM images, which a NIfTI file is not; "
            "write --output mask.nii.gz, or give the DICOM folder"
        )
        raise ClientError(msg)


def _require_writable(output: Path) -> None:
    """Told before the inference, not after it. Leaves nothing behind."""
    if output.is_dir():
        msg = f"the output {output} is a folder; name a file in it"
        raise ClientError(msg)
    folder = output.absolute().parent
    try:
        while not folder.exists():
            folder = folder.parent  # made later, beside this one
        with tempfile.TemporaryFile(dir=folder):
            pass
        if output.exists():
            with output.open("ab"):
                pass
    except OSError as error:
        msg = f"{output} can't be written ({error.strerror}); name another place with --output"
        raise ClientError(msg) from error


def _print(prediction: Prediction, written: Sequence[Path], seconds: float) -> None:
    table = _table("Segment", "ml")
    for name, ml in prediction.volumes_ml:
        table.add_row(name, f"{ml:,.1f}")
    out.print(table)
    if prediction.scores:
        _print_scores(prediction.scores)
        if is_nifti(written[0]):
            warn("a NIfTI file can't hold the scores; end the output in .dcm for their report")
    if prediction.left_out:
        names = ", ".join(prediction.left_out)
        warn(f"the pipeline's output {names} is no label map and no score; it isn't written")
    k, j, i = prediction.volume.shape_kji
    out.print(
        f"{prediction.contract.pipeline} {prediction.contract.version}: {k} x {j} x {i} voxels, "
        f"{prediction.inference.duration_s:.1f} s in Triton, {seconds:.1f} s in all. "
        f"Wrote {_listed(written)}."
    )
