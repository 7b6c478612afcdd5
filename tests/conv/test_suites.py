"""The layer suites: rows that torch agrees with."""

import pytest

torch = pytest.importorskip("torch", reason="the layer suites are checked against torch's own shape rules")

from rocm_patch.conv.suites import SUITES, Layer  # noqa: E402


def test_every_network_of_the_contract_is_there():
    assert {layer.suite for layer in SUITES} == {
        "resnet18", "resnet50", "resnext50", "mobilenet_v2", "efficientnet_b0", "yolov8n", "yolov8s", "unet256", "eegnet", "eeg_temporal",
        "sd15_vae_decoder", "unet3d_block", "dcgan",
    }  # fmt: skip


def test_a_shape_is_once_in_its_suite_and_a_name_too():
    assert len({(layer.suite, layer.layer) for layer in SUITES}) == len(SUITES)
    shapes = [
        (layer.suite, layer.input_shape, layer.weight_shape, layer.stride, layer.padding, layer.dilation, layer.groups, layer.transposed, layer.bias)
        for layer in SUITES
    ]
    assert len(set(shapes)) == len(shapes)


@pytest.mark.parametrize("suite", sorted({layer.suite for layer in SUITES}))
def test_shapes_are_those_that_torch_computes(suite):
    for layer in SUITES:
        if layer.suite != suite:
            continue
        x, weight = torch.empty(layer.input_shape, device="meta"), torch.empty(layer.weight_shape, device="meta")
        result = torch.ops.aten.convolution(
            x, weight, None, layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups
        )
        assert tuple(result.shape) == layer.output_shape, layer


# Multiplications and additions of one image through the convolutions, from the tables of the papers and of torchvision's model
# pages (which count a multiplication with its addition as one), in 1e9: https://pytorch.org/vision/stable/models.html
@pytest.mark.parametrize(
    ("suite", "published"), [("resnet18", 1.81), ("resnet50", 4.09), ("resnext50", 4.23), ("mobilenet_v2", 0.30), ("efficientnet_b0", 0.39)]
)
def test_the_arithmetic_of_a_network_is_what_was_published(suite, published):
    layers = [layer for layer in SUITES if layer.suite == suite]
    counted = sum(layer.flops * layer.count / layer.batch for layer in layers) / 2e9
    assert counted == pytest.approx(published, rel=0.03)


def test_arithmetic_is_that_of_the_flop_counter():
    counter = pytest.importorskip("torch.utils.flop_counter", reason="torch 2.1 brought the counter")
    transposed = Layer("made", "up", 2, 6, (5, 4), 4, (3, 2), (2, 1), (1, 0), (1, 1), 2, True, (1, 0), False, 1)
    for layer in (*SUITES[::7], transposed):
        x, weight = torch.empty(layer.input_shape, device="meta"), torch.empty(layer.weight_shape, device="meta")
        with counter.FlopCounterMode(display=False) as count:
            torch.ops.aten.convolution(
                x, weight, None, layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups
            )
        assert count.get_total_flops() == layer.flops, layer
