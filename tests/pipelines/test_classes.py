"""The list of classes is read from the library."""

from types import SimpleNamespace

from diffusers import DiffusionPipeline, ModularPipeline

from tools.pipelines import classes


class MyPipeline(DiffusionPipeline):
    pass


class MyModularPipeline(ModularPipeline):
    pass


class OnnxMyPipeline(DiffusionPipeline):
    pass


def test_pipelines_are_listed_but_bases_other_names_and_other_frameworks():
    kinds = (MyPipeline, MyModularPipeline, OnnxMyPipeline, DiffusionPipeline, ModularPipeline)
    root = SimpleNamespace(**{kind.__name__: kind for kind in kinds}, OldPipeline=MyPipeline)
    root.MyPipelineOutput = dict
    assert classes.exported(root) == {
        "MyPipeline": MyPipeline,
        "MyModularPipeline": MyModularPipeline,
    }


def test_a_class_behind_a_stand_in_is_found():
    stand_in = type("DDPMPipeline", (), {"_backends": ["torch"]})
    found = classes.exported(SimpleNamespace(DDPMPipeline=stand_in))
    assert found["DDPMPipeline"].__module__ == "diffusers.pipelines.ddpm.pipeline_ddpm"


def test_a_family_is_the_folder_of_a_class():
    kinds = {"diffusers.pipelines.ddpm.pipeline_ddpm": "ddpm"}
    kinds |= {"diffusers.pipelines.deprecated.pndm.pipeline_pndm": "deprecated/pndm"}
    kinds |= {"diffusers.modular_pipelines.wan.modular_pipeline": "modular_pipelines/wan"}
    for module, folder in kinds.items():
        assert classes.family(type("P", (), {"__module__": module})) == folder
