"""Every section and key of a config, with its meaning and its default: an experiment starts from this page.

    def get_config():
        config = base.get_config()
        config.model = dict(name="cnn", widths=(64, 128))
        config.horizon.epochs = 20.0
        return config

A section that names an entry of a table (`model`, `optimizer`, `schedule`, `loss` ...) also takes that entry's
parameters, by their names; those not given have the defaults that stand beside the entry. Every key can be set by a
flag, whether a page shows it or not: `--config.optimizer.name=adamw --config.model.stem=cifar`. Durations are in
epochs, steps, examples or percent of the run, by the ending of their name. `--print_config` shows a config whole.
"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()

    # Where the images come from. The test split is opened once, at the end; validation is carved from train where the
    # source has none of its own.
    config.data = dict(
        source=dict(name="tfds"),  # a data set of TensorFlow Datasets; "folder": one folder of images a class
        val_fraction=0.1,  # the part of train that becomes validation
        split_seed=0,
        train_examples=0,  # how many images of train to train on; 0: all
        batch_size=128,  # of all devices together; 0: all of train in one batch
        augment="",  # a chain of ops, "pad_crop(4)|flip_lr(0.5)"; "": none
        mix=dict(name="none"),  # or "mixup", "cutmix"
        normalize="channel_mean_std",  # by the statistics of the train images in use; "pretrained": as weights expect
        mean=(),  # for pixels in 0..1, one a channel, in place of those statistics; () measures them
        std=(),
        placement="auto",  # where the train images wait: "device", "host"; "auto": on the devices where they fit
    )

    # What is trained. Sizes, activation and so on are the model's own parameters.
    config.model = dict(name="resnet20")
    config.pretrained = ""  # weights to start from: a file, or a name on the hub, "timm/resnet50.a1_in1k"
    config.head_init = "random"  # of the last layer; "probe": fitted to what the layers before it give
    config.batch_norm = dict(
        running_variance="biased",  # what evaluation divides by; "unbiased", as in PyTorch
        frozen=False,  # whether training too normalises by the running averages, those of pre-trained weights
    )
    config.data_init = dict(name="none")  # "whiten": the first convolution from the train images
    config.precision = "float32"  # in which the network computes, or "bfloat16"; parameters are float32
    config.loss = dict(name="softmax")
    config.label_smoothing = 0.0
    config.regularizer = dict(name="none")  # "l2", "l1", "elastic_net": a term of the loss

    # How it is trained. `optimizer.lr`, the peak of the schedule, has a default for each optimiser.
    config.optimizer = dict(
        name="adamw",
        lr_per_batch=0,  # the batch size that lr is meant for, to scale it with data.batch_size; 0: as it is
        clip="global_norm",  # of the gradient, or "value", "adaptive"
        clip_norm=0.0,  # the threshold; 0: no clipping
        layer_decay=1.0,  # the rate of a layer over that of the next one, 0.75 for fine-tuning; 1: all alike
        rules=("rest:",),  # multipliers of lr and decay, frozen weights, by path: ("head/.*: lr=10", "rest:")
    )
    config.schedule = dict(name="cosine", warmup_epochs=0.0)  # linear from zero
    config.horizon = dict(epochs=10.0)  # the length of the run
    config.ema_decay = 0.0  # of a moving average of the weights, which is then what is evaluated; 0: none
    config.accumulation_parts = 1  # a batch is worked through in so many parts, to save memory
    config.remat = "none"  # what the backward pass computes again to save memory: "blocks", "elementwise"

    # While it runs. Each evaluation on validation saves a checkpoint; the best one is kept.
    config.eval = dict(
        every_epochs=1.0,
        batch_size=256,
        views="none",  # test-time augmentation: "mirror", "mirror_translate"
        monitor="accuracy",  # what chooses the best checkpoint: "balanced_accuracy", "loss"
    )
    config.early_stopping = dict(
        patience=0,  # evaluations without a gain after which the run ends; 0: never
        min_delta=0.0,  # what counts as a gain, in what eval.monitor names
    )
    config.checkpoint = dict(keep_latest=1)  # how many of the latest checkpoints are kept beside the best
    config.guard = dict(
        on_non_finite="stop",  # what NaN and Inf do: end the run; "skip" the step; "rollback" to a checkpoint
        max_times=3,  # how often "skip" in a row, "rollback" in all
        lr_factor=0.5,  # of the rate after a rollback
        watchdog_minutes=0.0,  # a run in which no step ends for so long exits with its stacks; 0: never
    )
    config.log_every_steps = 50
    config.steps_per_call = 1  # in one program; more where a step is short

    # On what.
    config.seed = 0
    config.parallel = dict(backend="pmap")  # or "shard_map": the same function, with JAX's checks
    config.deterministic = True  # on GPU operations that give the same bits each time, which exact resume needs
    config.convolution = "auto"  # on CPU oneDNN's where they were proven to work; "xla": never
    config.plugins = ()  # modules that --plugin loaded; set by it
    return config
