"""`python -m benchmarks.method`: every way of tuning side by side, at the bytes that each takes.

`protocol` says what a method is: attach, train, serialise, draw what the file says, detach. `ours` has the
concepts of atomdiff, a line a recipe; `peers` those of PEFT and LyCORIS; `handmade` what no library offers.
`tasks` is what is learnt, `fitting` the one training loop, `ledger` keeps results through a kill, `running`
makes them and `tables` shows them.
"""
