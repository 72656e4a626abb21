"""The configs of a study's trials: the given config at a point, for some steps, and what each step changes besides."""

import ml_collections

from linseed.trainer.config.changes import changed
from linseed.trainer.config.resolve import resolve
from linseed.trainer.experiment import Experiment
from linseed.trainer.tuning import trials
from linseed.trainer.tuning.lengths import LR_STEPS, SAMPLE_STEPS, WINDOW
from linseed.trainer.tuning.ranking import Trial

SAMPLE_BATCHES = 5  # in the sample to overfit


class TrialConfigs:
    """One method for each kind of trial: (trial, steps) -> its complete or partial config."""

    def __init__(self, config: ml_collections.ConfigDict, experiment: Experiment):
        self._config, self._experiment = config, experiment
        images, classes, batch_size = len(experiment.train.labels), experiment.num_classes, experiment.batch_size
        self.an_epoch = images / batch_size  # in steps
        self.sample_size = min(max(SAMPLE_BATCHES * batch_size, classes), images)
        # Step 3 leaves out as many train images as validation has, to compare the two, but never more than half.
        enough = min(LR_STEPS[-1] * batch_size, images - min(len(experiment.val.labels), images // 2))
        self._rate_images = min(max(enough, classes), images)

    def constant(self, trial: Trial, steps: int) -> ml_collections.ConfigDict:
        """Of steps 4 and 5: at a constant rate."""
        return trials.at_constant_rate(
            trials.at_point(self._config, trial.point),
            steps=steps,
            eval_every_steps=max(1, round(self.an_epoch)),
            log_every_steps=self._config.log_every_steps,
        )

    def short(self, trial: Trial, steps: int) -> ml_collections.ConfigDict:
        """Of step 3: on a part of the train images."""
        short = {"log_every_steps": WINDOW, "data.train_examples": self._rate_images}
        return changed(self.constant(trial, steps), short)

    def plain(self, trial: Trial, steps: int) -> ml_collections.ConfigDict:
        """Of step 3, without augmentation and mixing."""
        return trials.plain(self.short(trial, steps))

    def unregularised(self, trial: Trial, steps: int) -> ml_collections.ConfigDict:
        """Of step 3, without a regulariser."""
        return trials.unregularised(self.short(trial, steps))

    def sample(self, trial: Trial, steps: int) -> ml_collections.ConfigDict:
        """Of step 2: on a few images."""
        config = trials.sample(self.short(trial, steps), examples=self.sample_size)
        return changed(config, {"eval.every_steps": max(SAMPLE_STEPS)})

    def final(self, trial: Trial, steps: int) -> ml_collections.ConfigDict:
        """Of a final run: with the config's own schedule, complete."""
        return resolve(
            trials.shortened(
                trials.at_point(self._config, trial.point),
                steps=steps,
                total_steps=self._experiment.total_steps,
                num_examples=len(self._experiment.train.labels),
            )
        )
