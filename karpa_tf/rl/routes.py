"""Two environments of ways on roads, registered with Gymnasium when this module is imported.

    import gymnasium, karpa_tf.rl.routes
    gymnasium.make("karpa_tf/City-v0", size=12, closed=0.2)
    gymnasium.make("karpa_tf/Lanes-v0")

`karpa-tf train ... --env` knows them without that.
"""

from __future__ import annotations

import gymnasium

for _name, _class, _steps in (("City", "city:City", 1_000), ("Lanes", "lanes:Lanes", 100)):
    gymnasium.register(f"karpa_tf/{_name}-v0", f"karpa_tf.rl.{_class}", max_episode_steps=_steps)
