"""Fixtures of the engine's tests."""

import pytest


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Our kernels run on "cpu" tensors, by the C++ compiler of this machine."""
    emulator = pytest.importorskip("emulator", reason="the emulator lies beside these tests")
    if emulator.COMPILER is None:
        pytest.skip("no C++ compiler to run the kernels with")
    pytest.importorskip("torch", reason="the kernels work on torch's tensors")
    from rocm_patch.conv import runtime

    def forget():  # what was found out about the device
        runtime.runtime_of.cache_clear()
        runtime.missing.cache_clear()

    runtime.EXTRA["cpu"] = emulator.Emulator(tmp_path_factory.mktemp("emulated"))
    forget()
    yield runtime.EXTRA["cpu"]
    del runtime.EXTRA["cpu"]
    forget()
