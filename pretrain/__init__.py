"""From a game to a trained perceiver: collect frames, train on them, measure what came out.

In the order of use:

- `collect`: play a game and keep its frames (`objrl collect`).
- `policies`: who plays meanwhile, at random or an SB3 agent.
- `store`: the file of frames, `FrameStore` to read and `FrameWriter` to write; `hdf5` is what is
  under it, `minari` brings frames from and to Minari.
- `configure`: read the frames and set a model's priors by them.
- `presets`: the settings that are known to work.
- `train`: the one loop that trains every model (`objrl pretrain`).
- `evaluate`: scores against the truth, and without (`objrl evaluate`).

May import `objrl` and `objrl.wrappers`; needs the extra `objrl[pretrain]`.
"""
