"""Families of GPU programs, third part: branch distances, special instructions, calls, images, and ordinary arithmetic. See programs.py."""

from __future__ import annotations

from collections.abc import Iterator

from kernel_text import ARGUMENTS, DOT, ONLY_10_3, SPECIAL, Body, Program, arithmetic, conditional, module, plain_name


def branch_distances() -> Iterator[Program]:
    """Bodies of one-word instructions, so that the branch over them crosses the distance of 0x3f words."""
    for condition in ("uniform", "divergent"):
        for words in (20, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65):
            body = Body()
            lane = body.lane()
            bit = body.value(f"icmp slt i32 {'%n' if condition == 'uniform' else lane}, %m")
            conditional(body, bit, ["call void @llvm.amdgcn.s.sleep(i32 1)"] * words)
            body.store("%f", body.element("%out", lane))
            yield Program(f"distance-{condition}-{words}", module(body))
    for words in range(56, 65):
        body = Body()
        body.do("br label %loop")
        body.do("loop:")
        body.do("%i = phi i32 [0, %entry], [%next, %latch]")
        body.do("%next = add i32 %i, 1")
        body.do("%skip = icmp slt i32 %next, %m")
        body.do("br i1 %skip, label %latch, label %long")
        body.do("long:")
        for _ in range(words):
            body.do("call void @llvm.amdgcn.s.sleep(i32 2)")
        body.do("br label %latch")
        body.do("latch:")
        body.store("%f", body.element("%out", "%i"))
        body.do("%more = icmp slt i32 %next, %n")
        body.do("br i1 %more, label %loop, label %done")
        body.do("done:")
        yield Program(f"distance-loop-{words}", module(body))


def branch_distances_of_two_arms() -> Iterator[Program]:
    """A condition with two arms, as branch_distances: the jump over the second arm is a plain `s_branch`."""
    for words in (61, 62, 63, 64):
        for first in (2, 63):
            body = Body()
            bit = body.value("icmp slt i32 %n, %m")
            body.do(f"br i1 {bit}, label %one, label %two")
            for name, count in (("one", first), ("two", words)):
                body.do(f"{name}:")
                for _ in range(count):
                    body.do(f"call void @llvm.amdgcn.s.sleep(i32 {len(name) + count % 5})")
                body.do("br label %join")
            body.do("join:")
            body.store("%f", "%out")
            yield Program(f"distance-arms-{first}-{words}", module(body))


DOTS = """declare float @llvm.amdgcn.fdot2(<2 x half>, <2 x half>, float, i1 immarg)
declare i32 @llvm.amdgcn.sdot4(i32, i32, i32, i1 immarg)
declare i32 @llvm.amdgcn.udot4(i32, i32, i32, i1 immarg)
declare i32 @llvm.amdgcn.sdot8(i32, i32, i32, i1 immarg)
declare i32 @llvm.amdgcn.udot8(i32, i32, i32, i1 immarg)
declare i32 @llvm.amdgcn.sdot2(<2 x i16>, <2 x i16>, i32, i1 immarg)
declare i32 @llvm.amdgcn.udot2(<2 x i16>, <2 x i16>, i32, i1 immarg)
"""


def dots() -> Iterator[Program]:
    """Dot products: by intrinsic, where the chip has them, and by plain arithmetic, where the compiler may use them."""
    for name, pair, total in (
        ("fdot2", "<2 x half>", "float"),
        ("sdot4", "i32", "i32"),
        ("udot4", "i32", "i32"),
        ("sdot8", "i32", "i32"),
        ("udot8", "i32", "i32"),
        ("sdot2", "<2 x i16>", "i32"),
        ("udot2", "<2 x i16>", "i32"),
    ):
        for clamp in ("false", "true"):
            body = Body()
            lane = body.lane()
            left, right = body.load(body.element("%in", lane, pair), pair), body.load(body.element("%out", lane, pair), pair)
            first = body.value(
                f"call {total} @llvm.amdgcn.{name}({pair} {left}, {pair} {right}, {total} {'0.0' if total == 'float' else '0'}, i1 {clamp})"
            )
            second = body.value(f"call {total} @llvm.amdgcn.{name}({pair} {right}, {pair} {left}, {total} {first}, i1 {clamp})")
            body.store(second, body.element("%out", lane, total), total)
            yield Program(f"{name}-{'clamp' if clamp == 'true' else 'plain'}", module(body, extra=DOTS), chips=DOT)
    for signed in ("sext", "zext"):
        body = Body()
        lane = body.lane()
        total = "%n"
        left, right = body.load(body.element("%in", lane, "<4 x i8>"), "<4 x i8>"), body.load(body.element("%out", lane, "<4 x i8>"), "<4 x i8>")
        for part in range(4):
            one, two = (body.value(f"{signed} i8 {body.value(f'extractelement <4 x i8> {vector}, i32 {part}')} to i32") for vector in (left, right))
            total = body.value(f"add i32 {total}, {body.value(f'mul i32 {one}, {two}')}")
        body.store(total, body.element("%out", lane, "i32"), "i32")
        yield Program(f"bytes-{signed}", module(body))
    for size in (1, 4, 8):
        body = Body()
        lane = body.lane()
        total = "%f"
        for step in range(size):
            left = body.load(body.element("%in", f"{step}", "<2 x half>"), "<2 x half>")
            right = body.load(body.element("%out", lane, "<2 x half>"), "<2 x half>")
            for part in (0, 1):
                one, two = (
                    body.value(f"fpext half {body.value(f'extractelement <2 x half> {vector}, i32 {part}')} to float") for vector in (left, right)
                )
                total = body.value(f"call contract float @llvm.fma.f32(float {one}, float {two}, float {total})")
        body.store(total, body.element("%out", lane))
        yield Program(f"halves-{size}", module(body))


def permutes() -> Iterator[Program]:
    """Row permutations behind a condition that differs by lane, near the comparison and far from it."""
    for name in ("permlane16", "permlanex16"):
        for gap in (0, 1, 3):
            for compare in ("i32", "float", "i64", "double"):
                body = Body()
                lane = body.lane()
                value = body.load(body.element("%in", lane, "i32"), "i32")
                if compare == "float":
                    bit = body.value(f"fcmp ogt float {body.value(f'bitcast i32 {value} to float')}, %f")
                elif compare == "double":
                    bit = body.value(f"fcmp ogt double {body.value(f'sitofp i32 {value} to double')}, 4.0")
                elif compare == "i64":
                    bit = body.value(f"icmp ult i64 {body.value(f'zext i32 {value} to i64')}, {body.value('sext i32 %n to i64')}")
                else:
                    bit = body.value(f"icmp ult i32 {value}, %n")
                body.do(f"br i1 {bit}, label %then, label %done")
                body.do("then:")
                moved = value
                for step in range(gap):
                    moved = body.value(f"mul i32 {moved}, {step + 3}")
                moved = body.value(f"call i32 @llvm.amdgcn.{name}.i32(i32 {moved}, i32 {moved}, i32 %n, i32 %m, i1 false, i1 false)")
                body.store(moved, body.element("%out", lane, "i32"), "i32")
                body.do("br label %done")
                body.do("done:")
                yield Program(f"{name}-{compare}-{gap}", module(body, extra=SPECIAL))


def kills() -> Iterator[Program]:
    """Pixel shaders that discard lanes: straight, within a condition, in a loop."""
    for shape in ("plain", "branch", "loop"):
        for memory in (False, True):
            body = Body()
            body.do("%bit = fcmp olt float %v, %f")
            if memory:
                body.store("%v", "%out")
            if shape == "branch":
                conditional(body, body.value("fcmp ogt float %v, 4.0"), ["call void @llvm.amdgcn.kill(i1 %bit)"])
            elif shape == "loop":
                body.do("br label %loop")
                body.do("loop:")
                body.do("%x = phi float [%v, %entry], [%y, %loop]")
                body.do("%y = fmul float %x, %f")
                body.do("%keep = fcmp olt float %y, 8.0")
                body.do("call void @llvm.amdgcn.kill(i1 %keep)")
                body.do("%more = fcmp ogt float %y, 1.0")
                body.do("br i1 %more, label %loop, label %done")
                body.do("done:")
            else:
                body.do("call void @llvm.amdgcn.kill(i1 %bit)")
            body.store("%v", "%out")
            text = module(body, "ptr addrspace(1) inreg %out, float inreg %f, float %v", SPECIAL, "", "")
            yield Program(f"kill-{shape}-{'memory' if memory else 'bare'}", text)


def only_new() -> Iterator[Program]:
    """Instructions that came with gfx10.3."""
    body = Body()
    local = "!amdgpu.no.fine.grained.memory !0, !amdgpu.no.remote.memory !0"  # or it becomes a loop
    old = body.value(f'atomicrmw usub_sat ptr addrspace(1) %out, i32 %n syncscope("agent") monotonic, align 4, {local}')
    body.store(old, "%in", "i32")
    yield Program("csub", module(body, extra=f"{SPECIAL}!0 = !{{}}\n"), chips=ONLY_10_3)
    for count in (1, 3):
        body = Body()
        value = body.load(body.element("%in", body.lane()))
        for _ in range(count):
            value = body.value(f"call float @llvm.amdgcn.fma.legacy(float {value}, float %f, float 2.0)")
        body.store(value, "%out")
        yield Program(f"fma-legacy-{count}", module(body, extra=SPECIAL), chips=ONLY_10_3)
    body = Body()
    body.store(body.value("call i64 @llvm.readcyclecounter()"), "%out", "i64")
    yield Program("cycles", module(body, extra=SPECIAL))


def calls() -> Iterator[Program]:
    """Calls: to a function of the module, to an unknown one, by pointer, and switches."""
    helper = """define internal float @helper(float %x, ptr addrspace(1) %p) noinline {
  %a = load float, ptr addrspace(1) %p
  %b = fmul float %a, %x
  store volatile float %b, ptr addrspace(1) %p
  ret float %b
}
"""
    for shape in ("local", "outside", "pointer", "twice", "loop"):
        for private in (False, True):
            body = Body()
            lane = body.lane()
            here = body.element("%in", lane)
            if private:
                body.do("%array = alloca [8 x float], align 4, addrspace(5)")
                body.store("%f", body.element("%array", "%n", "float", 5), space=5)
            callee = {"outside": "@unknown", "pointer": "%callee"}.get(shape, "@helper")
            if shape == "pointer":
                body.do("%callee = load ptr, ptr addrspace(4) %table")
            if shape == "loop":
                body.do("br label %loop")
                body.do("loop:")
                body.do("%i = phi i32 [0, %entry], [%next, %loop]")
            result = body.value(f"call float {callee}(float %f, ptr addrspace(1) {here})")
            if shape == "twice":
                result = body.value(f"call float {callee}(float {result}, ptr addrspace(1) {here})")
            if shape == "loop":
                body.do("%next = add i32 %i, 1")
                body.do("%more = icmp slt i32 %next, %n")
                body.do("br i1 %more, label %loop, label %done")
                body.do("done:")
            if private:
                result = body.value(f"fadd float {result}, {body.load(body.element('%array', '%m', 'float', 5), space=5)}")
            body.store(result, body.element("%out", lane))
            extra = "declare float @unknown(float, ptr addrspace(1))\n" if shape == "outside" else helper
            text = module(body, "ptr addrspace(4) %table, " + ARGUMENTS, extra, "")
            yield Program(f"call-{shape}-{'stack' if private else 'plain'}", text)
    for selector in ("uniform", "divergent"):
        for cases in (4, 9):
            body = Body()
            lane = body.lane()
            targets = " ".join(f"i32 {case * (3 if cases == 9 else 1)}, label %case{case}" for case in range(cases))
            body.do(f"switch i32 {'%n' if selector == 'uniform' else lane}, label %done [ {targets} ]")
            for case in range(cases):
                body.do(f"case{case}:")
                value = arithmetic(body, body.load(body.element("%in", f"{case}")), case + 1, "float")
                body.store(value, body.element("%out", lane))
                body.do("br label %done")
            body.do("done:")
            yield Program(f"switch-{selector}-{cases}", module(body))


def plain() -> Iterator[Program]:
    """Ordinary code: other types, division, functions, atomics, wide loads."""
    for kind in ("double", "half", "i64", "i16", "<2 x half>", "bfloat"):
        for operation in ("add", "mul", "div"):
            if kind == "bfloat" and operation == "div":
                continue
            integer = kind.startswith("i")
            word = {"div": "sdiv"}.get(operation, operation) if integer else f"f{operation}"
            body = Body()
            lane = body.lane()
            left, right = (body.load(body.element(pointer, lane, kind), kind, align=8) for pointer in ("%in", "%out"))
            body.store(body.value(f"{word} {kind} {left}, {right}"), body.element("%out", lane, kind), kind)
            name = plain_name(kind)
            yield Program(f"plain-{name}-{operation}", module(body))
    functions = "".join(f"declare float @llvm.{name}.f32(float)\n" for name in ("sqrt", "exp2", "log2", "sin", "floor"))
    for name in ("sqrt", "exp2", "log2", "sin", "floor"):
        body = Body()
        lane = body.lane()
        value = body.value(f"call float @llvm.{name}.f32(float {body.load(body.element('%in', lane))})")
        body.store(value, body.element("%out", lane))
        yield Program(f"function-{name}", module(body, extra=functions))
    for operation, kind in (("add", "i32"), ("fadd", "float"), ("umax", "i64"), ("xchg", "i32"), ("fmax", "double")):
        for space in (1, 3):
            body = Body()
            lane = body.lane()
            pointer = "%out" if space == 1 else "@shared"
            value = {"i32": lane, "float": "%f", "i64": "7", "double": "2.0"}[kind]
            here = body.element(pointer, "%n", kind, space)
            body.do(f'%old = atomicrmw {operation} ptr addrspace({space}) {here}, {kind} {value} syncscope("agent") seq_cst')
            body.store("%old", body.element("%in", lane, kind), kind)
            extra = "@shared = internal addrspace(3) global [256 x i32] poison, align 16\n"
            yield Program(f"atomic-{operation}-{'lds' if space == 3 else 'global'}", module(body, extra=extra))
    body = Body()
    conditional(body, body.value("icmp slt i32 %n, %m"), ["call void @llvm.amdgcn.s.sleep(i32 1)"] * 33000)  # the field counts 32,767 words
    body.store("%f", "%in")
    yield Program("long-branch", module(body), chips=("gfx1010", "gfx1030"), levels=(1,))


RESOURCES = "<8 x i32>, <4 x i32>, i1 immarg, i32 immarg, i32 immarg"
IMAGES = f"""declare <4 x float> @llvm.amdgcn.image.sample.d.3d.v4f32.f32.f32(i32 immarg, {"float, " * 9}{RESOURCES})
declare <4 x float> @llvm.amdgcn.image.sample.2d.v4f32.f32(i32 immarg, float, float, {RESOURCES})
declare <4 x float> @llvm.amdgcn.raw.buffer.load.v4f32(<4 x i32>, i32, i32, i32 immarg)
declare void @llvm.amdgcn.raw.buffer.store.v4f32(<4 x float>, <4 x i32>, i32, i32, i32 immarg)
"""


def images() -> Iterator[Program]:
    """Image samples with few and many addresses (the latter in the form with registers apart), alone, in pairs, before buffers."""
    for samples in (1, 2, 3):
        for wide in (False, True):
            for offset in (None, 0, 2, 6, 16):
                if offset is not None and samples == 2:
                    continue
                body = Body()
                colours = []
                for step in range(samples):
                    points = ["%a", "%b", "%c", "%d", "%e", "%g", "%h", "%j", "%l"][: 9 if wide else 2]
                    points = points[step:] + points[:step]
                    name = "d.3d.v4f32.f32.f32" if wide else "2d.v4f32.f32"
                    given = ", ".join(f"float {point}" for point in points)
                    resources = "<8 x i32> %r, <4 x i32> %s, i1 false, i32 0, i32 0"
                    colours.append(body.value(f"call <4 x float> @llvm.amdgcn.image.sample.{name}(i32 15, {given}, {resources})"))
                if offset is not None:
                    body.do(f"call void @llvm.amdgcn.raw.buffer.store.v4f32(<4 x float> zeroinitializer, <4 x i32> %s, i32 {offset}, i32 0, i32 0)")
                total = colours[0]
                for colour in colours[1:]:
                    total = body.value(f"fadd <4 x float> {total}, {colour}")
                body.store(total, "%out", "<4 x float>", align=16)
                lanes = ", ".join(f"float %{name}" for name in "abcdeghjl")
                text = module(body, f"<8 x i32> inreg %r, <4 x i32> inreg %s, ptr addrspace(1) inreg %out, {lanes}", IMAGES, "", "")
                yield Program(f"image-{samples}-{'wide' if wide else 'narrow'}-{'alone' if offset is None else offset}", text)


FAMILIES = (branch_distances, branch_distances_of_two_arms, dots, permutes, kills, only_new, calls, plain, images)
