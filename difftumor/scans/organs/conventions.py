"""What the numbers mean in label maps that come without names, by the data set or program that they come from."""

from collections.abc import Mapping
from types import MappingProxyType

from difftumor.errors import OrganError
from difftumor.scans.organs.organ import normalized

BACKGROUND, ORGAN, TUMOR = 0, 1, 2

_LUNG_LOBES = (
    "lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right"
)
_VERTEBRAE = " ".join(
    f"vertebrae_{region}{number}" for region, most in (("L", 5), ("T", 12), ("C", 7)) for number in range(most, 0, -1)
)
_RIBS = " ".join(f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13))
_GLUTEAL_AND_BACK = (
    "gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left "
    "gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right"
)
_LIMBS = (
    "humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left femur_right "
    "hip_left hip_right"
)


def _numbered(names: str) -> Mapping[str, int]:
    """Number names from 1, in their order."""
    return {name: number for number, name in enumerate(names.split(), start=1)}


# The task "total" of TotalSegmentator, as its documentation lists the classes.
_TOTALSEGMENTATOR = _numbered(
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left "
    f"{_LUNG_LOBES} esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate "
    f"kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1 {_VERTEBRAE} heart aorta pulmonary_vein "
    "brachiocephalic_trunk subclavian_artery_right subclavian_artery_left common_carotid_artery_right "
    "common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left "
    "superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right "
    f"iliac_vena_left iliac_vena_right {_LIMBS} spinal_cord {_GLUTEAL_AND_BACK} brain skull {_RIBS} sternum "
    "costal_cartilages"
)
# Version 1, in which 7 is the aorta.
_TOTALSEGMENTATOR_V1 = _numbered(
    "spleen kidney_right kidney_left gallbladder liver stomach aorta inferior_vena_cava portal_vein_and_splenic_vein "
    f"pancreas adrenal_gland_right adrenal_gland_left {_LUNG_LOBES} {_VERTEBRAE} esophagus trachea heart_myocardium "
    "heart_atrium_left heart_ventricle_left heart_atrium_right heart_ventricle_right pulmonary_artery brain "
    "iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right small_bowel duodenum colon "
    f"{_RIBS} {_LIMBS} sacrum face {_GLUTEAL_AND_BACK} urinary_bladder"
)
_BTCV = _numbered(
    "spleen kidney_right kidney_left gallbladder esophagus liver stomach aorta inferior_vena_cava "
    "portal_vein_and_splenic_vein pancreas adrenal_gland_right adrenal_gland_left"
)
_AMOS = _numbered(
    "spleen kidney_right kidney_left gallbladder esophagus liver stomach aorta inferior_vena_cava pancreas "
    "adrenal_gland_right adrenal_gland_left duodenum urinary_bladder prostate/uterus"
)
# FLARE 2022; that of 2023 adds 14, tumors of any organ.
_FLARE = _numbered(
    "liver kidney_right spleen pancreas aorta inferior_vena_cava adrenal_gland_right adrenal_gland_left gallbladder "
    "esophagus stomach duodenum kidney_left"
)
# Version 1.1; the nine structures of 1.0 come first.
_ABDOMENATLAS = _numbered(
    "aorta gall_bladder kidney_left kidney_right liver pancreas postcava spleen stomach adrenal_gland_left "
    "adrenal_gland_right bladder celiac_trunk colon duodenum esophagus femur_left femur_right hepatic_vessel intestine "
    "lung_left lung_right portal_vein_and_splenic_vein prostate rectum"
)

CONVENTIONS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "standard": {"background": BACKGROUND, "organ": ORGAN, "tumor": TUMOR},
        "totalsegmentator": _TOTALSEGMENTATOR,
        "totalsegmentator_v1": _TOTALSEGMENTATOR_V1,
        "abdomenatlas": _ABDOMENATLAS,
        "amos": _AMOS,
        "btcv": _BTCV,
        "flare": _FLARE,
        # The CLIP-Driven Universal Model, as its README numbers them.
        "universal_model": {
            "spleen": 1,
            "kidney_right": 2,
            "kidney_left": 3,
            "liver": 6,
            "pancreas": 11,
            "kidney_tumor": 26,
            "liver_tumor": 27,
            "pancreas_tumor": 28,
            "hepatic_vessel_tumor": 29,
            "kidney_cyst": 32,
        },
        "msd_liver": {"background": 0, "liver": 1, "cancer": 2},
        "msd_pancreas": {"background": 0, "pancreas": 1, "cancer": 2},
        "lits": {"background": 0, "liver": 1, "tumor": 2},
        "kits": {"background": 0, "kidney": 1, "tumor": 2, "cyst": 3},
    }
)
# Those that name only some of what their label maps hold.
PARTIAL_CONVENTIONS = frozenset({"universal_model", "flare"})


def get_convention(name: str) -> Mapping[str, int]:
    """Return the label names of a public data set.

    Raises:
        OrganError: The convention is not known; the message lists those that are.
    """
    if normalized(name) not in CONVENTIONS:
        raise OrganError(f"Label convention {name!r} is not known; choose one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[normalized(name)]
