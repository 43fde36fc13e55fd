"""The table of model sizes: of every model that a study can name, and true to what the runtime builds."""

import pytest

from contract.catalogue import MODELS_FOR, Dataset, Images, ModelName, images_of
from contract.model_sizes import MODEL_SIZES, size_of
from runtime.model import build_model

NAMED = {
    (model, images_of(dataset, model)): (dataset, model)
    for dataset in Dataset
    for model in MODELS_FOR[dataset]
}


def test_every_model_that_a_study_can_name_has_a_size_and_no_other() -> None:
    assert MODEL_SIZES.keys() == NAMED.keys()
    assert all(size.parameters > 0 and size.core_seconds > 0 for size in MODEL_SIZES.values())


@pytest.mark.parametrize(("model", "images"), NAMED, ids=str)
def test_it_has_as_many_parameters_as_the_model(model: ModelName, images: Images) -> None:
    built = build_model(model, images, seed=0)
    assert size_of(*NAMED[model, images]).parameters == sum(p.numel() for p in built.parameters())
