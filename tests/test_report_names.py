"""Kernel names for people."""

from __future__ import annotations

import shutil

import pytest

from rocm_patch.report.names import demangled, folded


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void rocprim::detail::kernel<a<b, 2>, c>(int, float*)", "rocprim::detail::kernel<...>"),
        ("Cijk_Ailk_Bljk_SB_MT64x64", "Cijk_Ailk_Bljk_SB_MT64x64"),
        ("void (anonymous namespace)::f(int)", "(anonymous namespace)::f"),
        ("a<b>::operator<(int)", "a<...>::operator<"),
        ("", ""),
        ("<<<", "<...>"),
    ],
)
def test_folded(name: str, short: str) -> None:
    assert folded(name) == short


def test_without_a_filter_names_stay() -> None:
    assert demangled(["_Z1fv", "x"], path="/nonexistent") == {"_Z1fv": "_Z1fv", "x": "x"}


@pytest.mark.skipif(shutil.which("c++filt") is None and shutil.which("llvm-cxxfilt") is None, reason="neither c++filt nor llvm-cxxfilt is installed")
def test_real_filter() -> None:
    found = demangled(["_Z1fi", "_Zhostile", "plain", "_Z1fi\nx"])
    assert found == {"_Z1fi": "f(int)", "_Zhostile": "_Zhostile", "plain": "plain", "_Z1fi\nx": "_Z1fi\nx"}
