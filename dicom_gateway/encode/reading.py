"""The headers of a volume's sources, read while its mask is still being computed.

In: a volume. Out: what its objects are made from, and what the geometry gate holds them against:
read by two pieces of code, which share nothing. Nothing is kept.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from dicom_gateway.encode import gate
from dicom_gateway.encode.sources import Sources, read_sources
from dicom_gateway.records import Volume


class SourceReading:
    """Begins at once, in a thread of its own."""

    def __init__(self, volume: Volume) -> None:
        """Starts reading.

        Args:
            volume: As its results must see it, on its source frames.
        """
        self.volume = volume
        pool = ThreadPoolExecutor(1, thread_name_prefix="sources")
        self._sources = pool.submit(read_sources, volume)
        self._truth = pool.submit(gate.read_sources_anew, volume)
        pool.shutdown(wait=False)  # it ends with what it was given

    def sources(self) -> Sources:
        """For making objects.

        Raises:
            EncodingFailed: a source can't be read any more.
        """
        return self._sources.result()

    def truth(self) -> gate.Truth:
        """For the geometry gate.

        Raises:
            EncodingFailed: (result_misplaced) the volume doesn't lie where its files do; another
                code where one can't be read any more.
        """
        return self._truth.result()
