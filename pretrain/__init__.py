"""From a game to a trained perceiver: collect frames, train on them, measure what came out.

In the order of use:

- `collect`: play a game and keep its frames (`objrl collect`); `policies` is who plays meanwhile,
  at random or a saved SB3 agent.
- `store`: the file of frames, `FrameStore` to read and `FrameWriter` to write; `hdf5` is what is
  under it, `reading` takes samples and sequences, `minari` brings frames from and to Minari,
  `joint` reads several files as one.
- `rooms`: 3D rooms drawn by MuJoCo, with boxes and masks (`objrl rooms`); `studio` draws them.
- `synthetic`: moving sprites and digits with boxes and identities (`objrl synthetic`);
  `sequences` and `sprites` draw them. `video`: films and folders of pictures (`objrl video`).
- `configure`: read the frames and set a model's priors by them.
- `presets`: the training recipes as values, SCALOR's in `scalor_presets`.
- `train`: what `objrl pretrain` checks before it begins; `run` is the one loop for every model,
  `health` tells whether it goes well and what mends it, `space_task` is what SPACE brings,
  `scalor_task` what SCALOR does, `task` what every model must; `batches` feeds it, `report` sums
  it up.
- `evaluate`: scores, by labelled frames or without (`objrl evaluate`); `measure` computes them,
  `truth` reads the labels, `ram_truth` makes some (`objrl truth`),
  `tracks` and `mot` do the same for objects that are followed, `probe` asks what `what` knows,
  with the plain `learners`; `results` and `results_page` do it for everything that is shipped.
- `fleet` and `ship`, for maintainers: train every game that is shipped, and put a run's weights
  into the package with scores and a model card.

May import `objrl` and `objrl.wrappers`; needs the extra `objrl[pretrain]`.
"""
