"""Small GPU programs as LLVM IR text, by family: each family is a function that yields programs of one shape in many sizes.

The shapes are chosen for what a compiler makes of them on gfx10: each silicon bug of gfx10.1 has families that bring out its
pattern and near misses of it, and the rest is ordinary code of the kind that libraries are full of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kernel_text import ARGUMENTS, LEAN, LEVELS, TEN, Body, Program, arithmetic, module, plain_name
from programs_memory import FAMILIES as MEMORY
from programs_special import FAMILIES as SPECIAL


def loops() -> Iterator[Program]:
    """Inner loops of many body sizes: between 128 and 192 bytes LLVM asks gfx10.3 to prefetch instructions."""
    for kind, sizes in (("float", (2, 8, 12, 14, 16, 18, 20, 30)), ("mad", (6, 10, 14)), ("integer", (6, 12, 18, 24, 30))):
        for size in sizes:
            body = Body()
            lane = body.lane()
            base = body.element("%in", lane)
            body.do("br label %loop")
            body.do("loop:")
            body.do("%i = phi i32 [0, %entry], [%next, %loop]")
            element = "i32" if kind == "integer" else "float"
            value = body.load(body.element(base, "%i", element), element)
            value = arithmetic(body, value, size, kind)
            body.store(value, body.element("%out", "%i", element), element)
            body.do("%next = add i32 %i, 1")
            body.do("%more = icmp slt i32 %next, %n")
            body.do("br i1 %more, label %loop, label %done")
            body.do("done:")
            yield Program(f"loop-{kind}-{size}", module(body))


def nested_loops() -> Iterator[Program]:
    """A loop within a loop: the outer one is asked first whether it prefetches."""
    for inner, outer in ((10, 2), (14, 2), (16, 4), (18, 0), (20, 8)):
        body = Body()
        lane = body.lane()
        body.do("br label %outer")
        body.do("outer:")
        body.do("%i = phi i32 [0, %entry], [%i.next, %latch]")
        start = body.load(body.element("%in", lane))
        start = arithmetic(body, start, outer, "float")
        body.do("br label %inner")
        body.do("inner:")
        body.do("%j = phi i32 [0, %outer], [%j.next, %inner]")
        body.do(f"%sum = phi float [{start}, %outer], [%sum.next, %inner]")
        total = arithmetic(body, "%sum", inner, "float")
        loaded = body.load(body.element("%in", "%j"))
        body.do(f"%sum.next = fadd float {total}, {loaded}")
        body.do("%j.next = add i32 %j, 1")
        body.do("%j.more = icmp slt i32 %j.next, %m")
        body.do("br i1 %j.more, label %inner, label %latch")
        body.do("latch:")
        body.store("%sum.next", body.element("%out", lane))
        body.do("%i.next = add i32 %i, 1")
        body.do("%i.more = icmp slt i32 %i.next, %n")
        body.do("br i1 %i.more, label %outer, label %done")
        body.do("done:")
        yield Program(f"nested-{inner}-{outer}", module(body))


LDS = "@shared = internal addrspace(3) global [1024 x float] poison, align 16\n"


def lds_then_memory() -> Iterator[Program]:
    """LDS, a branch, then global memory, and the other way round, with and without a barrier, uniform and divergent."""
    for first in ("lds", "memory"):
        for condition in ("uniform", "divergent"):
            for barrier in (False, True):
                for kind in ("store", "load"):
                    body = Body()
                    lane = body.lane()
                    shared = body.element("@shared", lane, space=3)
                    remote = body.element("%out", lane)

                    def touch(place: str, body: Body = body, shared: str = shared, remote: str = remote, kind: str = kind) -> None:
                        pointer, space = (shared, 3) if place == "lds" else (remote, 1)
                        if kind == "store":
                            body.store("%f", pointer, space=space)
                        else:
                            body.store(arithmetic(body, body.load(pointer, space=space), 1, "float"), pointer, space=space)

                    touch(first)
                    if barrier:
                        body.do("call void @llvm.amdgcn.s.barrier()")
                    body.do(f"%c = icmp slt i32 {'%n' if condition == 'uniform' else lane}, %m")
                    body.do("br i1 %c, label %then, label %done")
                    body.do("then:")
                    touch("memory" if first == "lds" else "lds")
                    body.do("br label %done")
                    body.do("done:")
                    yield Program(f"lds-{first}-first-{condition}-{'barrier' if barrier else 'bare'}-{kind}", module(body, extra=LDS))


def lds_loops() -> Iterator[Program]:
    """Loops that read LDS and write memory, a tree reduction, and a transpose through LDS."""
    for order in ("lds", "memory"):
        for size in (1, 6, 14):
            body = Body()
            lane = body.lane()
            body.do("br label %loop")
            body.do("loop:")
            body.do("%i = phi i32 [0, %entry], [%next, %loop]")
            shared = body.element("@shared", "%i", space=3)
            if order == "lds":
                value = arithmetic(body, body.load(shared, space=3), size, "float")
                body.store(value, body.element("%out", lane))
            else:
                value = arithmetic(body, body.load(body.element("%in", "%i")), size, "float")
                body.store(value, shared, space=3)
            body.do("%next = add i32 %i, 1")
            body.do("%more = icmp slt i32 %next, %n")
            body.do("br i1 %more, label %loop, label %done")
            body.do("done:")
            body.store(
                "%f",
                body.element("%out" if order == "memory" else "@shared", lane, space=1 if order == "memory" else 3),
                space=1 if order == "memory" else 3,
            )
            yield Program(f"lds-loop-{order}-{size}", module(body, extra=LDS))
    for uniform in (True, False):
        body = Body()
        lane = body.lane()
        mine = body.element("@shared", lane, space=3)
        body.store(body.load(body.element("%in", lane)), mine, space=3)
        body.do("br label %loop")
        body.do("loop:")
        body.do("%step = phi i32 [128, %entry], [%half, %join]")
        body.do("call void @llvm.amdgcn.s.barrier()")
        body.do(f"%active = icmp ult i32 {lane}, %step")
        body.do("br i1 %active, label %add, label %join")
        body.do("add:")
        other = body.value(f"add i32 {lane}, %step")
        total = body.value(f"fadd float {body.load(mine, space=3)}, {body.load(body.element('@shared', other, space=3), space=3)}")
        body.store(total, mine, space=3)
        body.do("br label %join")
        body.do("join:")
        body.do("%half = lshr i32 %step, 1")
        body.do("%more = icmp ne i32 %half, 0")
        body.do("br i1 %more, label %loop, label %last")
        body.do("last:")
        body.do(f"%first = icmp eq i32 {lane if not uniform else '%n'}, 0")
        body.do("br i1 %first, label %write, label %done")
        body.do("write:")
        body.store(body.load("@shared", space=3), body.element("%out", body.group()))
        body.do("br label %done")
        body.do("done:")
        yield Program(f"lds-reduce-{'uniform' if uniform else 'divergent'}", module(body, extra=LDS))


def compares() -> Iterator[Program]:
    """Comparisons whose results outlive the argument pointer: they may be put where a scalar load still reads its address."""
    for count in (1, 2, 3, 4, 6, 9):
        for lean in (True, False):
            body = Body()
            lane = body.lane()
            bits = [body.value(f"icmp ult i32 {lane}, {3 + 5 * step}") for step in range(count)]
            value = body.load(body.element("%in", lane))
            body.do('fence syncscope("wavefront") release')
            for step, bit in enumerate(bits):
                other = body.value(f"select i1 {bit}, float %f, float {float(step)}")
                value = body.value(f"fmul float {value}, {other}")
            body.store(value, body.element("%out", lane))
            yield Program(f"compare-{count}-{'lean' if lean else 'plain'}", module(body, attributes=LEAN if lean else ""))


def compare_after_last_load() -> Iterator[Program]:
    """The last use of a scalar pointer is a scalar load; lane results then want its registers."""
    for count in (1, 2, 3, 5):
        for kind in ("compare", "readfirstlane", "readlane"):
            body = Body()
            lane = body.lane()
            results = []
            wide = body.value("load <8 x i32>, ptr addrspace(4) %table, align 32")
            for step in range(count):
                shifted = body.value(f"mul i32 {lane}, {step * 3 + 7}")
                if kind == "compare":
                    results.append(body.value(f"zext i1 {body.value(f'icmp sgt i32 {shifted}, {step * 17}')} to i32"))
                elif kind == "readfirstlane":
                    results.append(body.value(f"call i32 @llvm.amdgcn.readfirstlane(i32 {shifted})"))
                else:
                    results.append(body.value(f"call i32 @llvm.amdgcn.readlane(i32 {shifted}, i32 {step})"))
            for step, result in enumerate(results):
                part = body.value(f"extractelement <8 x i32> {wide}, i32 {step}")
                body.store(body.value(f"add i32 {part}, {result}"), body.element("%out", f"{step}", "i32"), "i32")
            text = module(body, arguments="ptr addrspace(4) %table, ptr addrspace(1) %out", attributes=LEAN)
            yield Program(f"scalar-load-{kind}-{count}", text)


def scalar_loops() -> Iterator[Program]:
    """Uniform loops over constant memory with lane work in between: pointer chasing, table walks."""
    for shape in ("walk", "chase", "filter", "readfirstlane"):
        for size in (1, 4):
            body = Body()
            lane = body.lane()
            body.do("br label %loop")
            body.do("loop:")
            body.do("%p = phi ptr addrspace(4) [%table, %entry], [%p.next, %loop]")
            body.do("%i = phi i32 [0, %entry], [%next, %loop]")
            value = body.load("%p", "i32", 4)
            if shape == "chase":
                body.do("%p.next = load ptr addrspace(4), ptr addrspace(4) %p, align 8")
            elif shape == "readfirstlane":
                first = body.value(f"call i32 @llvm.amdgcn.readfirstlane(i32 {body.value(f'add i32 {lane}, %i')})")
                body.do(f"%p.next = getelementptr i32, ptr addrspace(4) %table, i32 {first}")
            else:
                body.do("%p.next = getelementptr i32, ptr addrspace(4) %p, i32 4")
            total = value
            for step in range(size):
                bit = body.value(f"icmp ugt i32 {body.value(f'add i32 {lane}, {step}')}, {total}")
                total = body.value(f"select i1 {bit}, i32 {lane}, i32 {total}")
            body.store(total, body.element("%out", lane, "i32"), "i32")
            body.do("%next = add i32 %i, 1")
            test = f"icmp slt i32 {value}, 0" if shape == "filter" else "icmp slt i32 %next, %n"
            body.do(f"%more = {test}")
            body.do("br i1 %more, label %loop, label %done")
            body.do("done:")
            arguments = "ptr addrspace(4) %table, ptr addrspace(1) %out, i32 %n"
            yield Program(f"scalar-{shape}-{size}", module(body, arguments=arguments))


def store_then_step() -> Iterator[Program]:
    """A memory instruction with a scalar address that is stepped right after it, or overwritten by a scalar load or by exec."""
    for shape in ("step", "reload", "mask"):
        for kind in ("float", "<4 x float>", "i8", "double"):
            body = Body()
            lane = body.lane()
            value = "%f" if kind == "float" else body.load(body.element("%in", lane, kind), kind, align=16 if "<" in kind else 8)
            body.do("br label %loop")
            body.do("loop:")
            body.do(f"%p = phi ptr addrspace(1) [%out, %entry], [%p.next, %{'join' if shape == 'mask' else 'loop'}]")
            body.do(f"%i = phi i32 [0, %entry], [%next, %{'join' if shape == 'mask' else 'loop'}]")
            if shape == "mask":
                body.do(f"%c = icmp sgt i32 {lane}, %i")
                body.do("br i1 %c, label %then, label %join")
                body.do("then:")
            body.store(value, body.element("%p", lane, kind), kind, align=1 if kind == "i8" else 4)
            if shape == "mask":
                body.do("br label %join")
                body.do("join:")
            if shape == "reload":
                body.do("%p.next = load ptr addrspace(1), ptr addrspace(4) %table, align 8")
            else:
                body.do("%p.next = getelementptr i8, ptr addrspace(1) %p, i64 512")
            body.do("%next = add i32 %i, 1")
            body.do("%more = icmp slt i32 %next, %n")
            body.do("br i1 %more, label %loop, label %done")
            body.do("done:")
            name = plain_name(kind)
            yield Program(f"store-{shape}-{name}", module(body, arguments="ptr addrspace(4) %table, " + ARGUMENTS))


def divergent_control() -> Iterator[Program]:
    """Branches that differ by lane: nested conditions, early exits, loops that lanes leave one by one."""
    for depth in (1, 2, 3, 4):
        for memory in (False, True):
            body = Body()
            lane = body.lane()
            here = body.element("%in", lane)
            value = body.load(here)
            for level in range(depth):
                if memory:
                    body.store(value, body.element("%out", f"{level * 64}"))
                bit = body.value(f"fcmp ogt float {value}, {float(level)}")
                body.do(f"br i1 {bit}, label %in{level}, label %end")
                body.do(f"in{level}:")
                value = body.load(body.element(here, f"{level + 1}"))
            body.store(value, body.element("%out", lane))
            body.do("br label %end")
            body.do("end:")
            yield Program(f"divergent-{depth}-{'stores' if memory else 'plain'}", module(body))
    for shape in ("count", "search", "store", "break"):
        for size in (0, 4, 12):
            body = Body()
            lane = body.lane()
            body.do("br label %loop")
            body.do("loop:")
            body.do(f"%i = phi i32 [{lane}, %entry], [%next, %{'latch' if shape == 'break' else 'loop'}]")
            body.do(f"%x = phi float [%f, %entry], [%y, %{'latch' if shape == 'break' else 'loop'}]")
            loaded = body.load(body.element("%in", "%i"))
            total = arithmetic(body, "%x", size, "float")
            body.do(f"%y = fadd float {total}, {loaded}")
            if shape == "store":
                body.store("%y", body.element("%out", "%i"))
            body.do("%next = add i32 %i, 7")
            if shape == "break":
                body.do("%stop = fcmp olt float %y, 0.0")
                body.do("br i1 %stop, label %done, label %latch")
                body.do("latch:")
            body.do("%more = fcmp ogt float %y, 1.0" if shape == "search" else "%more = icmp slt i32 %next, %n")
            body.do("br i1 %more, label %loop, label %done")
            body.do("done:")
            body.store("%y", body.element("%out", lane))
            yield Program(f"lanes-{shape}-{size}", module(body))


CONTROL = (loops, nested_loops, lds_then_memory, lds_loops, compares, compare_after_last_load, scalar_loops, store_then_step, divergent_control)
NARROW: tuple[Program, ...] = tuple(program for family in CONTROL + MEMORY + SPECIAL for program in family())


def wide() -> Iterator[Program]:
    """Some of them again for waves of 64 lanes: masks are pairs of registers there."""
    for program in (each for each in NARROW[::7] if each.chips == TEN and each.levels == LEVELS):
        features = ",".join(each for each in (program.features, "-wavefrontsize32", "+wavefrontsize64") if each)
        yield replace(program, name=f"{program.name}-wave64", features=features)


PROGRAMS: tuple[Program, ...] = (*NARROW, *wide())
