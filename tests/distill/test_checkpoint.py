"""A checkpoint is read back, or it is said what is wrong with it."""

import pytest
import torch

from sdbench.distill.checkpoint import read_checkpoint


def test_a_broken_checkpoint_is_to_be_overwritten(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="--overwrite starts from the beginning"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_a_checkpoint_without_rights_is_not_to_be_overwritten(tmp_path, monkeypatch):
    def refuses(*args, **options):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "checkpoint.pt").touch()
    monkeypatch.setattr(torch, "load", refuses)
    with pytest.raises(PermissionError, match="Permission denied"):
        read_checkpoint(tmp_path / "checkpoint.pt")
