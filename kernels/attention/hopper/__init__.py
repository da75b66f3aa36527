"""Attention for Hopper (sm_90) in Gluon, warp-specialised: one warp loads by TMA, two or three warpgroups multiply.

    choice.py        may this path be taken, and why not
    launch.py        inputs, plan, allocate, launch  <- tiles.py, descriptors.py
    forward.py       device code of one kernel each: the producer, a step, a consumer, the kernel
    dkdv.py  dq.py
    device.py        their helpers   structs.py   what they hand on together

Nothing here is imported before a call takes this path.
"""
