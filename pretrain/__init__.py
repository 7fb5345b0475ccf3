"""From a game to a trained perceiver: collect frames, train on them, measure what came out.

In the order of use:

- `collect`: play a game and keep its frames (`objrl collect`); `policies` is who plays meanwhile,
  at random or a saved SB3 agent.
- `store`: the file of frames, `FrameStore` to read and `FrameWriter` to write; `hdf5` is what is
  under it, `minari` brings frames from and to Minari.
- `configure`: read the frames and set a model's priors by them.
- `presets`: the training recipes as values.
- `train`: what `objrl pretrain` checks before it begins; `run` is the one loop for every model,
  `space_task` what SPACE brings, `batches` feeds it, `checkpoint` keeps it, `stopping` lets it
  end cleanly, `report` sums it up.
- `evaluate`: scores, by labelled frames or without (`objrl evaluate`); `measure` computes them,
  `truth` reads the labels.
- `ship`: for maintainers, a run's weights into the package, with scores and a model card.

May import `objrl` and `objrl.wrappers`; needs the extra `objrl[pretrain]`.
"""
