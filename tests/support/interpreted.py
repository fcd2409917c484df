"""Kernels of Triton without a GPU: its interpreter runs them on tensors of the CPU, its compiler compiles them."""

import importlib.util

import pytest


def load(name, *, interpreted=True):
    """Return a fresh copy of a module whose kernels are interpreted; the one that a GPU would run stays as it is."""
    pytest.importorskip("triton")
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(interpreted)))
        spec.loader.exec_module(module)
    return module


def assembly(name, kernel, arguments, constants):
    """Return what a kernel is compiled to for an H100, with Triton's own assembler.

    Args:
        name: of the module.
        kernel: its name.
        arguments: Triton's types by name, of tuples tuples.
        constants: values by name.
    """
    module = load(name, interpreted=False)
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {**arguments, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=getattr(module, kernel), signature=types, constexprs=constants)
    return compiled(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
