"""The options of train.py, written down."""

# A new option is a decision: add it here, and say in its docstring what it is for.
OPTIONS = """\
epochs seed out_dir resume max_steps profile
data.dataset data.config data.revision data.train_split data.eval_split data.image_column data.label_column
data.fallback data.batch_size data.image_size data.fit data.crop_scale data.resized_crop data.store data.stored_size
data.threads data.verify data.limit data.val_fraction data.augment data.cutout data.mixup data.cutmix data.pca_color
data.normalize data.cache_dir
model.pretrained model.weights model.init model.conv1_init_scale model.dropout
optim.name optim.momentum optim.muon_layers optim.nesterov optim.lr optim.scale_lr optim.schedule optim.step_epochs
optim.warmup_epochs optim.weight_decay optim.beta2 optim.decay_biases optim.clip_norm optim.label_smoothing optim.ema
optim.accumulate
runtime.precision runtime.cpu runtime.compile runtime.cuda_graphs runtime.comm_hook runtime.probe_network
runtime.timeout_seconds
log.every_steps log.kernels_every_epochs log.conv2_kernel log.trackers
wandb.mode wandb.project wandb.entity wandb.name wandb.group wandb.job_type wandb.tags wandb.artifacts wandb.shared
checkpoint.every_steps checkpoint.every_epochs checkpoint.keep
""".split()
