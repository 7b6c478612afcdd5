"""The initramfs: does it hold the driver, then our file must be in it as well, on the way there and on the way back.

A driver that is loaded before the root file system is there reads the copy of modprobe.d in the image. Such an image is
made anew by its own maker, into a file of ours, looked into, and only then put in place; the one that boots today is
kept beside it. An image without the driver is left alone: modprobe reads /etc then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes import initramfs_entry, system_tools, unpack
from rocm_patch.changes.kind import NOTE, TO_DO, Change, Work
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.root import CONTENT_LIMIT, Root, State

COPY: Final = ".rocm-patch"
"""Ending of the copy of the image that boots today. grub-mkconfig and kernel-install look for names that end in the version."""
TIMEOUT: Final = 900.0
_DRIVER: Final = re.compile(r"(?:usr/)?lib/modules/[^/]+/(?:.+/)?amdgpu\.ko(?:\.(?:xz|zst|gz))?")
_SANE: Final = (0.5, 2.0)
"""An image that is made anew from the same parts has about the same size; half of it is a disk that ran full, or a maker that lost its list."""


@dataclass(frozen=True)
class Maker:
    """A program that makes images."""

    name: str
    program: str
    marks: tuple[str, ...]
    """Names that only its images hold."""
    words: Callable[[str, str, tuple[str, ...]], tuple[str, ...]]
    """Its arguments for (file to write, kernel version, files of ours that are there)."""
    by_hand: Callable[[str, str], str]
    """What a user types for (image, kernel version)."""
    reads: tuple[str, ...]
    """What it sources: nobody but root may have written it."""


MAKERS: Final = (
    Maker(
        "initramfs-tools", "/usr/sbin/mkinitramfs", ("conf/initramfs.conf", "scripts/functions"),
        lambda out, kernel, _: ("-o", out, kernel), lambda _, kernel: f"update-initramfs -u -k {kernel}",
        ("/etc/initramfs-tools", "/etc/initramfs-tools/hooks", "/usr/share/initramfs-tools", "/usr/share/initramfs-tools/hooks"),
    ),
    Maker(
        "dracut", "/usr/bin/dracut", ("usr/lib/dracut/build-parameter.txt", "lib/dracut/build-parameter.txt", "usr/lib/dracut/dracut-010.txt"),
        # An image for any host (hostonly=no) is made without /etc/modprobe.d: our file has to be named.
        lambda out, kernel, ours: ("--force", *(word for file in ours for word in ("--install", file)), out, kernel),
        lambda image, kernel: f"dracut --force {image} {kernel}",
        ("/etc/dracut.conf", "/etc/dracut.conf.d", "/usr/lib/dracut", "/usr/lib/dracut/modules.d"),
    ),
    Maker(
        "mkinitcpio", "/usr/bin/mkinitcpio", ("init_functions", "buildconfig"),
        lambda out, kernel, _: ("-k", kernel, "-g", out), lambda *_: "mkinitcpio -P",
        ("/etc/mkinitcpio.conf", "/etc/mkinitcpio.conf.d", "/etc/initcpio", "/usr/lib/initcpio", "/usr/lib/initcpio/install"),
    ),
)  # fmt: skip
BOOSTER: Final = "etc/booster.init.yaml"


@dataclass(frozen=True)
class Image:
    """An initramfs as it is now, in what matters here."""

    path: str
    kernel: str
    driver: bool
    maker: Maker | None
    inside: bytes | None
    """Our file as the image holds it."""
    unread: str = ""
    """Why it could not be looked into."""
    of_booster: bool = False


# ------------------------------------------------------------------ looking


def paths_of(root: Root, kernel: str) -> tuple[str, ...]:
    """Where the images of one kernel lie, as on that machine."""
    package = root.word(f"lib/modules/{kernel}/pkgbase")
    base = getattr(package, "value", None) or ""
    names = [f"initrd.img-{kernel}", f"initramfs-{kernel}.img", f"initrd-{kernel}", *([f"initramfs-{base}.img"] if base else [])]
    names += [f"booster-{base}.img"] if base else []
    found = [f"boot/{name}" for name in names]
    machine = getattr(root.word("etc/machine-id"), "value", None) or ""
    if re.fullmatch("[0-9a-f]{32}", machine):
        found += [f"{top}/{machine}/{kernel}/initrd" for top in ("boot", "efi", "boot/efi")]
    return tuple(dict.fromkeys(_behind_links(root, path) for path in found if root.exists(path)))


def _behind_links(root: Root, path: str) -> str:
    """The path with the links of its folders resolved: nothing is written through a link, and /efi may be one to /boot/efi."""
    folder, _, name = path.rpartition("/")
    there = os.path.realpath(root.host(folder)) if root.live else root.host(folder)
    return f"{there if root.live else there[len(root.path.rstrip('/')) :]}/{name}"


def look(work: Work, path: str, kernel: str, file: str) -> Image:
    """Look into an image. `file`: ours, whose copy is wanted.

    On the way back one that cannot be read is told as unread: it must not keep the others, or our file, in place.

    Raises:
        RocmPatchError, OSError: on the way there, it cannot be read.
    """
    try:
        state = work.tree.state(work.ground.at(path), CONTENT_LIMIT)
    except (RocmPatchError, OSError) as error:
        if not work.back:
            raise
        return Image(path, kernel, False, None, None, error.what if isinstance(error, RocmPatchError) else str(error))
    return look_into(state, path, kernel, file)


def look_into(state: State, path: str, kernel: str, file: str) -> Image:
    """The same for an image that was read."""
    if state.kind != "file":
        return Image(path, kernel, False, None, None, f"it is a {state.kind}, and no file")
    ours = file.lstrip("/")
    try:
        found = unpack.contents(state.data, (ours,))
    except RocmPatchError as error:
        return Image(path, kernel, False, None, None, error.what)
    if any(name.rpartition("/")[2] in ("squashfs-root.img", "squash-root.img", "erofs-root.img") for name in found.names):
        return Image(path, kernel, False, None, None, "its files lie in a file system inside it")
    driver = any(_DRIVER.fullmatch(name) for name in found.names)
    maker = next((maker for maker in MAKERS if any(mark in found.names for mark in maker.marks)), None)
    return Image(path, kernel, driver, maker, found.files.get(ours), of_booster=BOOSTER in found.names)


# ------------------------------------------------------------------ making


def hindrance(work: Work, image: Image) -> str:
    """Why this image cannot be made anew from here; empty: it can."""
    if image.of_booster:
        return "booster made it, which takes options from modprobe_options in /etc/booster.yaml"
    if image.maker is None:
        return "what made it is not known"
    return system_tools.why_not(work.ground, (image.maker.program,), image.maker.reads)


def renew(work: Work, file: str, images: Sequence[Image]) -> Iterator[Change]:
    """The changes that bring these images up to date with our file as it is on disk now; none where they are.

    On the way back a failure is told and no more: it must not keep our file in place.

    Raises:
        RefusedError: too little space.
        RocmPatchError: the maker failed, or made something that is not to be booted.
    """
    menu: Change | None = None  # one for all kernels: a file is changed once in a transaction
    renewed = list[Change]()
    for image in images:
        try:
            if work.back and work.tree.state_kind(work.ground.at(f"{image.path}{COPY}")) == "absent":
                menu = initramfs_entry.without(work, image.kernel, menu) or menu
            if not stale(image, _wanted(work, file)) or hindrance(work, image):
                continue
            copy, after = _renewed(work, file, image)
        except (RocmPatchError, OSError) as error:
            if not work.back:
                raise
            what = error.what if isinstance(error, RocmPatchError) else str(error)
            if not image.unread:  # those are told of at the end
                work.say(f"{image.path} still holds options that were taken back: {what}. To make it anew: {_by_hand(work, image)}")
            continue
        if copy is not None:
            yield copy
            added = initramfs_entry.entry(work, image.path, copy.path, image.kernel, menu)
            menu = added if isinstance(added, Change) else menu
        renewed.append(after)
    if menu is not None:
        yield menu
    yield from renewed


def _renewed(work: Work, file: str, image: Image) -> tuple[Change | None, Change]:
    """The copy of the image that boots today, where there is none yet, and the image made anew."""
    assert image.maker is not None  # noqa: S101  # hindrance said so
    old = work.tree.state(work.ground.at(image.path), CONTENT_LIMIT)
    copy = f"{image.path}{COPY}"
    _check_space(work, image.path, len(old.data))
    work.say(f"{image.maker.name} makes {image.path} anew; this takes a minute")
    made = _make(work, image, (file,) if _wanted(work, file) is not None else ())
    _check(look_into(State("file", data=made), image.path, image.kernel, file), image, _wanted(work, file), len(made), len(old.data))
    # The first copy stays: it is the image without anything of ours.
    first = not work.back and work.tree.state_kind(work.ground.at(copy)) == "absent"
    return Change(copy, old) if first else None, Change(image.path, State("file", old.mode, old.uid, old.gid, made, "", old.attributes))


def _wanted(work: Work, file: str) -> bytes | None:
    now = work.tree.state(work.ground.at(file))
    return now.data if now.kind == "file" else None


def stale(image: Image, wanted: bytes | None) -> bool:
    """Whether an image holds the driver and another state of our file than the one wanted."""
    return image.driver and not image.unread and image.inside != wanted


def _check_space(work: Work, path: str, size: int) -> None:
    folder = os.path.dirname(work.ground.host(path))
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if free < 2 * size:
        raise RefusedError(
            f"{os.path.dirname(path)} has {free >> 20} MiB free, and making {path} anew is safe from {2 * size >> 20} MiB on, twice its size; "
            "nothing was changed",
            "remove a kernel that is no longer needed, then try again",
        )


def _make(work: Work, image: Image, ours: tuple[str, ...]) -> bytes:
    assert image.maker is not None  # noqa: S101  # hindrance said so
    # In the transaction's own folder, which nobody else can enter and recovery clears whatever happens.
    inside = f"{work.ground.state}/{work.transaction}/image"
    argv = [image.maker.program, *image.maker.words(work.ground.on_machine(inside), image.kernel, ours)]
    try:
        ended = system_tools.run_there(work.ground, argv, timeout=TIMEOUT, keep=(work.lock,))
        made = work.tree.state(inside, CONTENT_LIMIT)
    finally:
        if work.tree.state_kind(inside) != "absent":
            work.tree.remove(inside)
    if ended.code or ended.timed_out or made.kind != "file":
        what = "took too long" if ended.timed_out else f"ended with {ended.code}"
        raise RocmPatchError(f"{image.maker.program} {what} and {image.path} stays as it was: {ended.text}")
    return made.data


def _check(new: Image, old: Image, wanted: bytes | None, size: int, before: int) -> None:
    wrong = (
        new.unread
        or ("" if new.driver else "it no longer holds amdgpu")
        or ("" if new.maker is old.maker else "it does not look like the one before")
        or ("" if new.inside == wanted else "our file is not in it as it should be (mkinitcpio: the hook modconf brings it)")
        or ("" if _SANE[0] * before <= size <= _SANE[1] * before else f"it has {size} bytes where the one before has {before}")
    )
    if wrong:
        raise RocmPatchError(f"the image that {old.maker.name if old.maker else 'its maker'} made for {old.path} is not put in place: {wrong}")


# ------------------------------------------------------------------ telling


def marked(work: Work, file: str, image: Image) -> str:
    """The same line as `told` gives, with the mark of its nature."""
    if image.unread or stale(image, _wanted(work, file)):
        return TO_DO + told(work, file, image)
    return told(work, file, image) if image.driver else NOTE + told(work, file, image)


def told(work: Work, file: str, image: Image) -> str:
    """One line: whether the driver reads our file from this image, and what is left to do."""
    wanted = _wanted(work, file)
    if image.unread:
        return f"{image.path}: not looked into ({image.unread}); if amdgpu is loaded from it: {_by_hand(work, image)}"
    if not image.driver:
        return f"{image.path}: holds no amdgpu, so the driver reads {os.path.dirname(file)} itself; it is left as it is"
    if not stale(image, wanted):
        return f"{image.path}: holds amdgpu and {'this file, byte for byte' if wanted is not None else 'nothing of ours'}"
    why = hindrance(work, image) or "that failed"
    return f"{image.path}: holds amdgpu and not what {file} says now; not made anew, since {why}. To do it: {_by_hand(work, image)}"


def _by_hand(work: Work, image: Image) -> str:
    if image.of_booster:
        return "add the option to modprobe_options in /etc/booster.yaml, then: sudo /usr/lib/booster/regenerate_images"
    maker = image.maker or next((maker for maker in MAKERS if os.path.exists(work.ground.host(maker.program))), None)
    if maker is None:
        return "make it anew with the program that made it"
    return system_tools.words_for(work.ground, maker.by_hand(image.path, image.kernel))


def told_of_copy(work: Work, image: Image) -> str:
    """How to start with the image as it was; empty: it was not changed."""
    copy = f"{image.path}{COPY}"
    if work.tree.state_kind(work.ground.at(copy)) != "file":
        return ""
    menu = initramfs_entry.has_entry(work, image.kernel)
    if menu:
        return f"{copy}: the image as it was; an entry of GRUB's menu starts with it ({menu})"
    return f"{copy}: the image as it was. To start with it: press e in the boot menu and put {COPY} behind the image's name on the line initrd"
