"""Forty planted secrets in the places where they are met, and none of them in what a recording or an explanation keeps."""

from __future__ import annotations

import pytest

from rocm_patch.machine import redact

LINES = {
    "alice@example.org": "built by {}",
    "bob.smith+rocm@mail.example.co.uk": "From: {}",
    "carol_x@localhost.localdomain": "mail {} bounced",
    "dave@corp.example": "git config user.email {}",
    "erin@sub.domain.example": "<{}>",
    "00:1a:2b:3c:4d:5e": "link/ether {} brd ff:ff:ff:ff:ff:ff",
    "AA:BB:CC:DD:EE:01": "HWaddr {}",
    "02-42-ac-11-00-02": "Physical Address {}",
    "de:ad:be:ef:00:99": "bluetooth {}",
    "3c:7c:3f:aa:bb:cc": "r8169 eth0: {}, IRQ 31",
    "123e4567-e89b-12d3-a456-426614174000": "root=UUID={} ro quiet",
    "9f0c1d2e-3b4a-4c5d-8e6f-7a8b9c0d1e2f": "/dev/disk/by-uuid/{}",
    "0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0": "product_uuid {}",
    "deadbeef-0000-4000-8000-00000000c0de": "PARTUUID={}",
    "11111111-2222-3333-4444-555555555555": "boot_id {}",
    "192.168.17.23": "inet {}/24",
    "10.0.0.138": "gateway {}",
    "172.16.254.1": "ssh {}",
    "100.64.3.7": "peer {}",
    "192.168.1.250": "nfs server {}:/export",
    "/home/alice/x": "File {}, line 3",
    "/home/bob/venv/lib/python3.12": "sys.path {}",
    "/home/carol.x/.cache/miopen": "MIOpen cache {}",
    "/home/dave/git/rocm": "-- Build files have been written to: {}",
    "/home/erin": "HOME={}",
    "serial: ABC123XYZ": "board {}",
    "Serial Number: 0987654321": "{}",
    "serial: PF2XK99Q": "chassis {}",
    "serial number: MXL0123ABC": "dmi {}",
    "SerialNumber: 5CG1234567": "usb 1-1: {}",
    "workstation-of-frank": "Linux {} 6.14.0-33-generic",
    "frank": "user={}",
    "grace-box": "{} kernel: amdgpu 0000:0a:00.0",
    "heidi": "sudo: {} : TTY=pts/0",
    "ivan.local": "avahi {}",
    "judy": "/run/media/{}/disk",
    "mallory": "drwx {} users",
    "niaj-pc": "hostname {}",
    "olivia": "export USER={}",
    "peggy": "uid=1000({})",
}
NAMES = ("workstation-of-frank", "frank", "grace-box", "heidi", "ivan.local", "judy", "mallory", "niaj-pc", "olivia", "peggy")


@pytest.mark.parametrize("secret", LINES)
def test_a_planted_secret_is_not_kept(secret):
    line = LINES[secret].format(secret)
    assert secret in line
    kept = redact.text(line, redact.words(NAMES))
    assert secret not in kept
    assert secret.rpartition(": ")[2] not in kept
    assert len(LINES) == 40
