"""Which models of a pipeline keep an instance free for requests that can't wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from dicom_gateway.config import TritonSettings
from dicom_gateway.infer import TritonClient

REPOSITORY = Path(__file__).parents[4] / "model_repository"


class Served:
    """Answers with the configs of our own repository, as a machine with some GPUs does."""

    def __init__(self, gpus: int = 0) -> None:
        self._gpus = gpus

    def get_model_config(self, name: str, **_: Any) -> service_pb2.ModelConfigResponse:
        """As Triton would."""
        config = model_config_pb2.ModelConfig()
        text_format.Parse((REPOSITORY / name / "config.pbtxt").read_text("utf-8"), config)
        for group in config.instance_group:
            group.kind = group.KIND_GPU if self._gpus else group.KIND_CPU
            group.gpus.extend(range(self._gpus))
        return service_pb2.ModelConfigResponse(config=config)

    def close(self) -> None:
        """Nothing is open."""


def test_pipelines_that_share_a_model_share_its_lane(tmp_path: Path) -> None:
    """One of each would otherwise keep both instances of the model that they share busy."""
    client = TritonClient(TritonSettings(), tmp_path)
    client._triton.close()
    client._triton = Served()  # type: ignore[assignment]
    assert client._lanes_for_others("lung_ct") == {"lung_ct_inferer": 1}
    shared = client._lanes_for_others("thorax_multi")
    assert shared["lung_ct_inferer"] == 1
    assert len(shared) > 1
    client.close()


def test_instances_on_each_gpu_are_lanes(tmp_path: Path) -> None:
    """Four GPUs compute eight studies at a time; one lane of all of them stays free."""
    client = TritonClient(TritonSettings(), tmp_path)
    client._triton.close()
    client._triton = Served(gpus=4)  # type: ignore[assignment]
    assert client._lanes_for_others("lung_ct")["lung_ct_inferer"] == 7
    client.close()
