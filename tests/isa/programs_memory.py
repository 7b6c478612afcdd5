"""Families of GPU programs, second part: memory. See programs.py."""

from __future__ import annotations

from collections.abc import Iterator

from kernel_text import SPECIAL, Body, Program, module, plain_name


def flat_offsets() -> Iterator[Program]:
    """Flat and global accesses with constant offsets, inside the field's range and out of it, of several widths."""
    for space in (0, 1):
        for offset in (0, 4, 252, 2044, 4092, -8, -2048, 70000):
            for kind in ("float", "<4 x i32>", "i16"):
                if kind != "float" and offset not in (4, 2044, -8):
                    continue
                body = Body()
                pointer = f"ptr{' addrspace(1)' if space else ''}"
                lane = body.lane()
                base = body.element("%p", lane, "i32", space)
                here = body.value(f"getelementptr inbounds i8, {pointer} {base}, i64 {offset}")
                body.store(body.load(here, kind, space, 2), here, kind, space, 2, volatile=True)
                name = plain_name(kind)
                text = module(body, arguments=f"{pointer} %p", attributes="", convention="")
                yield Program(f"{'global' if space else 'flat'}{offset:+d}-{name}", text)
    for operation in ("add", "xchg", "umax"):
        body = Body()
        here = body.value("getelementptr inbounds i8, ptr %p, i64 64")
        body.do(f"%old = atomicrmw {operation} ptr {here}, i32 5 seq_cst, align 4")
        yield Program(f"flat-atomic-{operation}", module(body, arguments="ptr %p", attributes="", convention=""))


def lds_alignment() -> Iterator[Program]:
    """Multi-word LDS and flat accesses at every alignment, in both modes of the work group processor."""
    for kind, size in (("<2 x i32>", 8), ("<3 x i32>", 16), ("<4 x i32>", 16), ("i64", 8), ("double", 8)):
        for align in (1, 4, 8, 16):
            if align > size:
                continue
            body = Body()
            lane = body.lane()
            here = body.element("%shared", body.value(f"mul i32 {lane}, 5"), "i32", 3)
            body.store(body.load(here, kind, 3, align), body.element("%out", lane, kind), kind, 1, 4)
            body.store(body.load(body.element("%out", lane, kind), kind, 1, 4), here, kind, 3, align)
            name = plain_name(kind)
            yield Program(f"lds-align-{name}-{align}", module(body, arguments="ptr addrspace(3) %shared, ptr addrspace(1) %out"))
    for features in ("+cumode",):
        body = Body()
        here = body.element("%shared", body.lane(), "i32", 3)
        body.store(body.load(here, "<4 x i32>", 3, 4), "%out", "<4 x i32>", 1, 4)
        yield Program("lds-align-cumode", module(body, arguments="ptr addrspace(3) %shared, ptr addrspace(1) %out"), features)
    for align in (4, 8, 16):
        body = Body()
        body.store(body.load("%p", "<4 x i32>", 0, align), "%out", "<4 x i32>", 1, 16)
        yield Program(f"flat-align-{align}", module(body, arguments="ptr %p, ptr addrspace(1) %out"))


def scratch() -> Iterator[Program]:
    """Private arrays with an index that only the run knows, small and large, by buffer and by scratch instructions."""
    for features in ("", "+enable-flat-scratch"):
        for kind, width in (("i8", 1), ("i16", 2), ("i32", 4)):
            for offset in (-1, -2, -3, -8, 5):
                if offset * width % width or (kind == "i32" and offset not in (-1, 5)):
                    continue
                body = Body()
                lane = body.lane()
                body.do(f"%array = alloca [64 x {kind}], align 4, addrspace(5)")
                index = body.value(f"and i32 {body.value(f'add i32 {lane}, %n')}, 31")
                first = body.element("%array", index, kind, 5)
                body.store(body.value(f"trunc i32 %m to {kind}") if kind != "i32" else "%m", first, kind, 5, width)
                near = body.value(f"getelementptr inbounds {kind}, ptr addrspace(5) {first}, i32 {offset}")
                other = body.load(near, kind, 5, width)
                body.store(other, body.element("%out", lane, kind), kind, 1, width)
                yield Program(f"scratch-{'flat' if features else 'buffer'}-{kind}{offset:+d}", module(body, attributes=""), features)
        for words in (1200, 20000):
            body = Body()
            lane = body.lane()
            body.do(f"%array = alloca [{words} x i32], align 4, addrspace(5)")
            body.do("%tail = alloca [16 x i32], align 4, addrspace(5)")
            body.store("%n", body.element("%array", lane, "i32", 5), "i32", 5)
            body.store("%m", body.element("%tail", "3", "i32", 5), "i32", 5)
            body.store(body.load(body.element("%array", "%n", "i32", 5), "i32", 5), body.element("%out", lane, "i32"), "i32")
            yield Program(f"frame-{'flat' if features else 'buffer'}-{words}", module(body, attributes=""), features)
    for offset in (-1, -3, -5, -6, -7, -64, -4095):
        body = Body()
        body.do(f"%near = getelementptr inbounds i8, ptr addrspace(5) %p, i32 {offset}")
        value = body.load("%near", "i8", 5, 1)
        body.do(f"%wide = getelementptr inbounds i8, ptr addrspace(5) %p, i32 {offset - 1}")
        body.store(value, "%wide", "i8", 5, 1)
        text = module(body, arguments="ptr addrspace(5) %p, ptr addrspace(1) %out", attributes="", convention="")
        yield Program(f"scratch-argument{offset:+d}", text, "+enable-flat-scratch")


def waterfalls() -> Iterator[Program]:
    """Buffer resources that differ by lane: the compiler makes a loop over the values."""
    for kind in ("load", "store", "both"):
        for offset in (0, 4, 2048):
            body = Body()
            lane = body.lane()
            resource = body.load(body.element("%in", lane, "<4 x i32>"), "<4 x i32>", align=16)
            value = "%f"
            if kind != "store":
                wide = body.value(f"call <4 x float> @llvm.amdgcn.raw.buffer.load.v4f32(<4 x i32> {resource}, i32 {lane}, i32 {offset}, i32 0)")
                value = body.value(f"extractelement <4 x float> {wide}, i32 2")
            if kind != "load":
                body.do(f"call void @llvm.amdgcn.raw.buffer.store.f32(float {value}, <4 x i32> {resource}, i32 {lane}, i32 %n, i32 0)")
            body.store(value, body.element("%out", lane))
            yield Program(f"waterfall-{kind}-{offset}", module(body, extra=SPECIAL))


FAMILIES = (flat_offsets, lds_alignment, scratch, waterfalls)
