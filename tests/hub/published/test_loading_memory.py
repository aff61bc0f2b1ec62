"""Loading takes the memory of one copy of the weights."""

import sys

import pytest
from loading_memory import LoadingOptions, main


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_peak_stays_below_one_and_a_fifth_of_the_weights(dtype):
    measured = main(LoadingOptions(size=1.0, num_shards=3, dtype=dtype))
    assert measured["ratio"] < 1.2
    assert measured["weights"] == pytest.approx(
        measured["stored"] * (2 if dtype == "float32" else 1), rel=0.01
    )
