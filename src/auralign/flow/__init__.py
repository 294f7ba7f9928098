"""Flow matching as theory: times, paths, ODE solvers, SDEs with densities. It knows nothing of speech or networks.

Time runs from 1 (the prior: noise, or noise around an observation) down to 0 (data), the convention of Flow-GRPO.
A velocity field is any callable `velocity(x, t)` that takes states "batch *shape", real or complex, and times
"batch", and returns dx/dt in the shape of the states. A model that was trained from 0 (noise) to 1 (data) is turned
round by `path.reverse_time`.
"""
