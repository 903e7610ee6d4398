"""What training starts from: runs, files, released models and pretrained backbones."""

import functools
import hashlib
import http.server
import re
import threading

import jax
import numpy as np
import pytest
import references
import torch_writer
from ml_collections import ConfigDict

from jaxseg import api, backbones_zoo, checkpoint, config, download, init_from, misfit, models, zoo
from jaxseg.errors import UserError
from jaxseg.state import TrainState, abstract_variables
from jaxseg.trees import named_leaves, nested

FCN = dict(
    name="fcn", backbone=dict(name="tests.tiny_backbone"), channels=8, num_convs=1,
    concat_input=False, aux_channels=4,
)  # fmt: skip
# The convolution and norms of tests.tiny_backbone, and of the heads of FCN, as in MMSegmentation.
WIDTHS = {"stem": (3, 8), "conv1": (8, 8), "conv2": (8, 16), "conv3": (16, 16), "conv4": (16, 16)}
CLASSIFIERS = {
    f"params/{head}/classifier/conv/{leaf}"
    for head in ("head", "aux_head")
    for leaf in ("kernel", "bias")
}


def state_dict(classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of `FCN` by PyTorch's names."""
    rng = np.random.default_rng(seed)
    convolutions = {f"backbone.{name}": io for name, io in WIDTHS.items()}
    convolutions |= {"decode_head.convs.0": (16, 8), "auxiliary_head.convs.0": (16, 4)}
    state = {}
    for name, (i, o) in convolutions.items():
        state[f"{name}.conv.weight"] = rng.normal(size=(o, i, 3, 3))
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{leaf}"] = rng.uniform(1, 2, o)
        state[f"{name}.bn.num_batches_tracked"] = np.zeros(())
    for head, width in (("decode_head", 8), ("auxiliary_head", 4)):
        state[f"{head}.conv_seg.weight"] = rng.normal(size=(classes, width, 1, 1))
        state[f"{head}.conv_seg.bias"] = rng.normal(size=classes)
    return {name: value.astype(np.float32) for name, value in state.items()}


def backbone_of(state: dict[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    found = {k: v for k, v in state.items() if k.startswith("backbone.")}
    return {prefix + k.removeprefix("backbone."): v for k, v in found.items()}


@functools.cache
def shapes(classes: int):
    return abstract_variables(models.get(FCN, classes), (64, 64))


def fresh(classes: int):
    """Variables of `FCN` that are all -1."""
    return jax.tree.map(lambda x: np.full(x.shape, -1, x.dtype), shapes(classes))


def start(source: str, classes: int = 5, skip: str = "", model=FCN, variables=None):
    """(arrays by name, note) to start with."""
    wanted = ConfigDict(dict(model=model, init_from=str(source), init_skip=skip))
    variables = fresh(classes) if variables is None else variables
    variables, note = init_from.start(wanted, variables, classes)
    return named_leaves(variables), note


@pytest.fixture
def write(tmp_path):
    """Writes a state dict as a file."""

    def run(state, name="weights.safetensors"):
        path = tmp_path / name
        path.write_bytes(torch_writer.safetensors(state))
        return path

    return run


def check_taken(got, state, but=()):
    """Every array of the model has the file's numbers, and those of `but` are as initialised."""
    assert set(but) <= got.keys()
    for name, value in got.items():
        if name in but:
            assert (value == -1).all(), name
    conv = state["backbone.conv2.conv.weight"]
    np.testing.assert_array_equal(
        got["params/backbone/conv2/conv/kernel"], conv.transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        got["batch_stats/head/conv0/bn/mean"], state["decode_head.convs.0.bn.running_mean"]
    )
    assert not any((value == -1).all() for name, value in got.items() if name not in but)


def test_a_file_of_as_many_classes_is_taken_whole(write, capsys):
    state = state_dict(5)
    got, note = start(write(state))
    check_taken(got, state)
    bias = state["decode_head.conv_seg.bias"]
    np.testing.assert_array_equal(got["params/head/classifier/conv/bias"], bias)
    assert note["taken"] == len(got) == 39 and not note["left"]
    assert "39 of the model's 39 arrays are taken" in capsys.readouterr().out


def test_for_other_classes_the_classifiers_are_left_out_and_named(write, capsys):
    state = state_dict(19)
    got, note = start(write(state))
    check_taken(got, state, but=CLASSIFIERS)
    assert set(note["left"]) == CLASSIFIERS and note["taken"] == 35
    said = capsys.readouterr().out
    assert "is for 19 classes, this model for 5" in said
    assert "head/classifier/conv/kernel: (1, 1, 8, 19) there, (1, 1, 8, 5) here" in said
    assert said.count("19") == 1 + 4  # the number, and one line for each parameter


def test_a_run_of_other_classes(write, tmp_path, capsys):
    state = state_dict(9)
    variables = nested(start(write(state), 9)[0])
    params, model_state = variables["params"], {"batch_stats": variables["batch_stats"]}
    checkpointer = checkpoint.Checkpointer(tmp_path / "run")
    checkpointer.save(3, TrainState(np.int32(3), params, model_state, ()), {})
    checkpointer.close()
    got, note = start(tmp_path / "run")
    check_taken(got, state, but=CLASSIFIERS)
    assert note["taken"] == 35 and "is for 9 classes" in capsys.readouterr().out


# Model without its number of classes -> modules whose shapes depend on it, by the papers' figures:
# those that score, and those that read scores.
DEPENDENT = {
    "fcn": (FCN, ["aux_head/classifier/conv", "head/classifier/conv"]),
    "pointrend": (
        dict(
            name="pointrend", backbone=dict(name="tests.tiny_backbone"), channels=8,
            coarse=dict(name="sem_fpn", neck_channels=8, channels=8),
        ),
        [
            "head/coarse/classifier/conv",
            *(f"head/point/{name}" for name in ("classifier", "fc0", "fc1", "fc2")),
        ],
    ),
    "fcn_vgg": (
        dict(
            name="fcn_vgg", backbone=dict(name="vgg", depth=11, width=4), fc_channels=8, stride=8,
        ),
        [
            *(f"head/{name}" for name in ("score_fr", "score_pool3", "score_pool4")),
            *(f"head/{name}/conv" for name in ("upscore2", "upscore8", "upscore_pool4")),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DEPENDENT)
def test_what_depends_on_the_classes(case):
    spec, expected = DEPENDENT[case]
    here, there = (
        {k: x.shape for k, x in named_leaves(abstract_variables(model, (64, 64))).items()}
        for model in (models.get(spec, 5), models.get(spec, 30))
    )
    differing = {name: (there[name], here[name]) for name in here if there[name] != here[name]}
    count, names = misfit.other_classes(differing, spec, 5)
    assert count == 30
    assert sorted({name.split("/", 1)[1].rsplit("/", 1)[0] for name in names}) == expected
    # One of them for another number: none explains them all.
    name = next(name for name in differing if name.endswith("classifier/conv/bias") or "fr" in name)
    assert misfit.other_classes(differing | {name: ((29,), here[name])}, spec, 5) is None
    assert misfit.other_classes({}, spec, 5) is None


def four_faults() -> dict[str, np.ndarray]:
    """One missing, one too many, one of a wrong shape, and two swapped."""
    state = state_dict(5)
    del state["decode_head.convs.0.bn.running_mean"]
    state["decode_head.extra.weight"] = np.zeros((2, 2), np.float32)
    state["backbone.conv3.conv.weight"] = state["backbone.conv3.conv.weight"][:, :-1]
    a, b = "backbone.conv1.conv.weight", "backbone.conv2.bn.bias"
    state[a], state[b] = state[b], state[a]
    return state


def check_four_faults(message: str, path) -> None:
    assert message.startswith(f"{path}: ")
    for words in (
        r"1 in the checkpoint, without a place.*\n  decode_head\.extra\.weight",
        r"1 in the model, missing.*\n.*decode_head\.convs\.0\.bn\.running_mean",
        r"3 of unequal shape:\n",
        r"backbone\.conv3\.conv\.weight gives \(3, 3, 15, 16\), the model has \(3, 3, 16, 16\)",
        r"backbone\.conv1\.conv\.weight gives \(16,\), the model has \(3, 3, 8, 8\)",
        r"backbone\.conv2\.bn\.bias gives \(3, 3, 8, 8\), the model has \(16,\)",
        r"arrays that fit: aux_head 7 of 7, backbone 22 of 25, head 6 of 7",
    ):
        assert re.search(words, message), words
    assert "backbone.conv4" not in message


def test_one_error_lists_all_faults_of_a_file(write):
    path = write(four_faults())
    with pytest.raises(UserError) as caught:
        start(path)
    check_four_faults(str(caught.value), path)
    whole = ConfigDict(dict(model=FCN, data=dict(name="camvid", root=""), dtype="float32"))
    whole.model.num_classes = 5
    whole.data = dict(name="jaxseg.zoo", dataset="LoveDADataset", classes=5)
    with pytest.raises(UserError) as caught:
        api.from_config(whole, path)
    check_four_faults(str(caught.value), path)


def test_loading_for_other_classes_says_how_to_train_from_it(write):
    path = write(state_dict(19))
    whole = ConfigDict(dict(model=FCN, dtype="float32"))
    whole.data = dict(name="jaxseg.zoo", dataset="LoveDADataset", classes=7)
    with pytest.raises(UserError, match=r"for 19 classes instead of 7.*init_from=.*\.saf"):
        api.from_config(whole, path)


def test_another_architecture_is_named(write):
    npz = np.load(references.GOLDEN / "pspnet_r18-d8_4xb2-80k_cityscapes-769x769.npz")
    keys = [str(line).split("|")[0] for line in npz["keys"]]
    assert misfit.architecture(keys)[0].startswith("pspnet_r")
    path = write({key: np.zeros(1, np.float32) for key in keys})
    with pytest.raises(UserError, match="(?s)networks like pspnet_r.*main zoo pspnet$"):
        start(path)


def test_skipped_parts_are_not_compared(write, capsys):
    state = {k: v for k, v in state_dict(19).items() if not k.startswith("decode_head")}
    state["decode_head.other.weight"] = np.zeros(3, np.float32)
    path = write(state)
    with pytest.raises(UserError, match="init_skip='head'"):
        start(path)
    got, note = start(path, skip="head|aux_head/classifier")
    check = {name for name in got if name.split("/")[1] == "head"} | CLASSIFIERS
    assert all((got[name] == -1).all() == (name in check) for name in got)
    assert note["taken"] == len(got) - 11 + 2 - 0
    with pytest.raises(UserError, match="'nekc' matches no parameter"):
        start(path, skip="nekc")


@pytest.mark.parametrize("form", ["torchvision", "mmcls", "mmseg"])
def test_a_backbone_alone(write, capsys, form):
    state = state_dict(5)
    inner = {
        "torchvision": backbone_of(state) | {"fc.weight": np.zeros((10, 16), np.float32)},
        "mmcls": backbone_of(state, "backbone.") | {"head.fc.bias": np.zeros(10, np.float32)},
        "mmseg": backbone_of(state, "backbone."),
    }[form]
    got, note = start(write(inner))
    for name, value in got.items():
        assert (value == -1).all() == (name.split("/")[1] != "backbone")
    assert note["taken"] == 25
    said = capsys.readouterr().out
    dropped = {"torchvision": "dropped: fc\n", "mmcls": "dropped: head\n", "mmseg": None}[form]
    assert dropped in said if dropped else "dropped" not in said


def test_a_backbone_of_another_kind_is_refused(write):
    inner = backbone_of(state_dict(5))
    deeper = inner | {"conv5.conv.weight": np.zeros((16, 16, 3, 3), np.float32)}
    with pytest.raises(UserError, match=r"without a place in the model:\n.*conv5\.conv\.weight"):
        start(write(deeper))
    del inner["conv3.bn.bias"]
    with pytest.raises(UserError, match=r"missing from.*\n.*backbone\.conv3\.bn\.bias"):
        start(write(inner))
    with pytest.raises(UserError, match="(?s)layer1.*weights of a backbone.*those of config.model"):
        start(write({"layer1.0.conv1.weight": np.zeros((4, 4, 1, 1), np.float32)}))


def test_a_file_of_another_toolbox(write, capsys):
    """segmentation_models.pytorch's Unet, for five classes, on nine."""
    npz = np.load(references.GOLDEN / "dialects" / "smp_unet_resnet18.npz")
    backbone = dict(name="resnet", depth=18, stem="plain")
    spec = dict(name="unet_resnet", backbone=backbone)
    wanted = abstract_variables(models.get(spec, 9), (64, 64))
    state = {f"model.{name}": value for name, value in references.state_dict(npz).items()}
    got, note = start(write(state), 9, model=spec, variables=wanted)
    left = {name for name, value in got.items() if not isinstance(value, np.ndarray)}
    assert left == {f"params/head/classifier/{leaf}" for leaf in ("kernel", "bias")}
    assert "is for 5 classes, this model for 9" in capsys.readouterr().out


def test_a_backbone_within_the_backbone():
    """Of BiSeNet, whose context path has a ResNet."""
    spec = dict(name="bisenetv1", backbone=dict(name="resnet", depth=18))
    wanted = abstract_variables(models.get(spec, 5), (64, 64))
    resnet = resnet18()
    target = init_from.Target(wanted, spec, 5)
    variables, note = init_from._from_backbone(target, "x", resnet)
    filled = {n for n, x in named_leaves(variables).items() if isinstance(x, np.ndarray)}
    of_resnet = {n for n in named_leaves(wanted) if re.search(r"/(stem\d|stage\d_\d)/", n)}
    assert filled == of_resnet and len(filled) == len(resnet) - 2
    assert note["taken"] == len(filled)


def resnet18() -> dict[str, np.ndarray]:
    """Names and shapes of ResNet-18-v1c, by torchvision's rules, with its classifier."""
    state = {"fc.weight": (1000, 512), "fc.bias": (1000,)}

    def norm(name, width):
        leaves = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{leaf}": (width,) for leaf in leaves}

    for i, (inputs, width) in enumerate(((3, 32), (32, 32), (32, 64))):
        state[f"stem.{3 * i}.weight"] = (width, inputs, 3, 3)
        state |= norm(f"stem.{3 * i + 1}", width)
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            state[f"{name}.conv1.weight"] = (width, inputs, 3, 3)
            state[f"{name}.conv2.weight"] = (width, width, 3, 3)
            state |= norm(f"{name}.bn1", width) | norm(f"{name}.bn2", width)
            if inputs != width:
                state[f"{name}.downsample.0.weight"] = (width, inputs, 1, 1)
                state |= norm(f"{name}.downsample.1", width)
            inputs = width
    return {name: np.zeros(shape, np.float32) for name, shape in state.items()}


# Published weights, from a server on this machine.

RELEASED = "mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024"


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Serves a state dict, and returns its URL."""
    (tmp_path / "server").mkdir()
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "server")
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXSEG_OFFLINE", raising=False)

    def run(state):
        data = torch_writer.safetensors(state)
        name = f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
        (tmp_path / "server" / name).write_bytes(data)
        return f"http://127.0.0.1:{server.server_port}/{name}"

    yield run
    server.shutdown()
    server.server_close()


def mobilenet() -> tuple[dict, dict]:
    """(`config.model` of the released model, its weights)."""
    npz = np.load(references.GOLDEN / f"{RELEASED}.npz")
    spec = zoo.config(RELEASED).model.to_dict()
    return spec, references.state_dict(npz)


def test_a_released_model_and_a_pretrained_backbone_by_name(publish, monkeypatch, capsys):
    spec, state = mobilenet()
    del spec["num_classes"]
    wanted = abstract_variables(models.get(spec, 4), (64, 64))
    monkeypatch.setitem(zoo.facts()["names"][RELEASED], "weights", publish(state))
    got, note = start(RELEASED, 4, model=spec, variables=wanted)
    left = {name for name, value in got.items() if not isinstance(value, np.ndarray)}
    assert left == CLASSIFIERS == set(note["left"])
    assert "is for 19 classes, this model for 4" in capsys.readouterr().out

    classifier = {k: v for k, v in state.items() if k.startswith("backbone.")}
    classifier["backbone.conv2.conv.weight"] = np.zeros((8, 320, 1, 1), np.float32)
    classifier["head.fc.weight"] = np.zeros((10, 8), np.float32)
    published = backbones_zoo.WEIGHTS["mobilenet_v2"]
    local = backbones_zoo.Pretrained(publish(classifier), published.spec)
    monkeypatch.setitem(backbones_zoo.WEIGHTS, "mobilenet_v2", local)
    for name in ("auto", "mmcls://mobilenet_v2"):
        got, note = start(name, 4, model=spec, variables=wanted)
        taken = {name for name, value in got.items() if isinstance(value, np.ndarray)}
        assert taken == {name for name in got if name.split("/")[1] == "backbone"}
        kernel = state["backbone.layer3.1.conv.1.conv.weight"]
        np.testing.assert_array_equal(
            got["params/backbone/layer3_1/depthwise/conv/kernel"], kernel.transpose(2, 3, 1, 0)
        )
    said = capsys.readouterr().out
    assert "dropped: conv2, head" in said and said.count("Downloading") == 1


def test_out_of_reach_training_starts_from_scratch_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXSEG_OFFLINE", "1")
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    spec = FCN | dict(backbone=dict(name="resnet", depth=18))
    got, note = start("auto", model=spec)
    assert all((value == -1).all() for value in got.values())
    said = capsys.readouterr().out
    assert "FROM SCRATCH: resnet18_v1c" in said and "downloads are off" in said
    assert "pretrain/third_party/resnet18_v1c-b5776b93.pth (its SHA-256 begins with" in said
    assert note["taken"] == 0 and "downloads are off" in note["why"]
    for name in ("resnet18_v1c", "open-mmlab://resnet18_v1c", RELEASED):  # asked for by name
        with pytest.raises(UserError, match="downloads are off"):
            start(name, model=spec)
    start("auto")  # of a backbone that nobody published
    assert "no ImageNet weights are known" in capsys.readouterr().out


def test_a_name_that_is_none_is_told():
    with pytest.raises(UserError, match="config.init_from='resnet50_v1x'.*but by resnet50_v1d"):
        start("resnet50_v1x")
    with pytest.raises(UserError, match="'runs/nothing': there is no such file or folder"):
        start("runs/nothing")


def test_the_published_backbones():
    for name, weights in backbones_zoo.WEIGHTS.items():
        assert len(download.published_prefix(weights.url)) == 8, name
        part = weights.spec["name"] in models.available("Backbone")
        found = backbones_zoo.automatic({"backbone": weights.spec} if part else weights.spec)
        assert found == name.removesuffix(".imagenet1k_v2"), name
    urls = [weights.url for weights in backbones_zoo.WEIGHTS.values()]
    assert len(urls) == len(set(urls))
    same = backbones_zoo.WEIGHTS["hrnetv2_w18"]
    assert backbones_zoo.get("open-mmlab://msra/hrnetv2_w18") is same
    assert backbones_zoo.get("runs/hrnetv2_w18") is None


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("pspnet.py:cityscapes", "resnet50_v1c"),
        ("pointrend_deeplabv3.py:cityscapes", "resnet101_v1c"),
        ("deeplabv2.py:voc2012", "resnet101"),
        ("fcn_hrnet.py:ade20k", "hrnetv2_w18"),
        ("lraspp.py:cityscapes", "mobilenet_v3_large"),
        ("deeplabv3p_mobilenetv2.py:folder", "mobilenet_v2"),
        ("deeplabv1.py:voc2012", "vgg16"),
        ("unet_fcn.py:cityscapes", None),
        ("pspnet.py:camvid", ""),
        ("pspnet.py:synthetic", ""),
    ],
)
def test_the_recipes_start_from_the_weights_that_the_published_ones_do(argument, name):
    recipe = config.from_file(f"configs/{argument}")
    assert recipe.init_from == ("" if name == "" else "auto")
    if name != "":
        assert backbones_zoo.automatic(recipe.model.to_dict()) == name
    if argument.startswith("fcn_hrnet"):
        recipe.model.backbone.update(modules=(1, 3, 2), blocks=2)
        assert backbones_zoo.automatic(recipe.model.to_dict()) == "hrnetv2_w18_small"


def test_fine_tuning_takes_the_network_and_what_it_scores():
    recipe = config.from_file(
        "configs/finetune.py:pointrend_r50_4xb2-80k_cityscapes-512x1024,folder"
    )
    assert recipe.init_from == "pointrend_r50_4xb2-80k_cityscapes-512x1024"
    assert set(recipe.losses) == {"logits", "points"} and recipe.augment.crop == (512, 1024)
    assert recipe.model.name == "pointrend" and "num_classes" not in recipe.model
    with pytest.raises(UserError, match="dataset 'camvit'"):
        config.from_file("configs/finetune.py:camvit")
