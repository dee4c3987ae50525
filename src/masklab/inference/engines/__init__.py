"""Ways to run a prediction on many machines.

``on_ray`` gives out the work and gathers what comes back, ``work`` is what a worker does with an item of it, ``large``
follows images that are predicted in tiles, ``places`` finds images on disks and in object stores, and ``tables`` is the
folder of results.
"""
