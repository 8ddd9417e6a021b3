"""Train: a torch module learns, or goes on learning, from the recipe's samples.

1. The weights that come out are the best on held-out samples; never worse there than
   what came in.
2. Nothing is made smaller: the accuracy of the build is compared with the result.
"""

import copy
from typing import ClassVar

from ..model import Level, Model, Step
from ..training.hooks import augmentation
from ..training.loop import LoopOptions, train
from ..training.losses import task_loss
from .base import Context, Pass


class Train(Pass):
    """Module → module."""

    verb = "train"
    takes: ClassVar[Level] = "module"
    gives: ClassVar[Level] = "module"

    def run(self, model: Model, context: Context) -> Model:
        """Train a copy; without epochs, give the model as it is."""
        parameters = self.parameters
        if not parameters["epochs"]:
            return model.after(Step(self.verb, dict(parameters)))
        task = context.trained_on()
        module = copy.deepcopy(model.payload)
        trained = train(
            module,
            [spec.name for spec in model.inputs],
            task,
            LoopOptions.of(parameters),
            task_loss(parameters, task),
            augment=augmentation(parameters, task.folder),
            name=self.verb,
        )
        step = Step(self.verb, {**parameters, **trained.facts()})
        return model.after(step, payload=module)
