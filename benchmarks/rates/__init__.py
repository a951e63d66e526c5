"""Do the rates that `atomdiff.training.calibration` finds suit the base, whatever base it is?"""
