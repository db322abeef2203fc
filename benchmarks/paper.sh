# The experiments of the paper, one command a line: its tasks, with the algorithms that are here.
#
# One seed says little: add --seed 1, 2, ... The settings of each task are the row of
# the script's table that its name begins with. AntMaze needs the package d4rl (see docs/data.md), and
# the hands need AWAC's demonstrations, turned into files once:
#
#     python -m benchmarks.data.convert adroit pen2_sparse.npy pen_bc_sparse4.npy --task pen
#
# The eleventh task, visual manipulation, is not here: its code was never published.

# AntMaze
python iql.py --dataset antmaze-medium-play-v2
python awac.py --dataset antmaze-medium-play-v2
python cql.py --dataset antmaze-medium-play-v2
python cal_ql.py --dataset antmaze-medium-play-v2
python iql.py --dataset antmaze-medium-diverse-v2
python awac.py --dataset antmaze-medium-diverse-v2
python cql.py --dataset antmaze-medium-diverse-v2
python cal_ql.py --dataset antmaze-medium-diverse-v2
python iql.py --dataset antmaze-large-play-v2
python awac.py --dataset antmaze-large-play-v2
python cql.py --dataset antmaze-large-play-v2
python cal_ql.py --dataset antmaze-large-play-v2
python iql.py --dataset antmaze-large-diverse-v2
python awac.py --dataset antmaze-large-diverse-v2
python cql.py --dataset antmaze-large-diverse-v2
python cal_ql.py --dataset antmaze-large-diverse-v2

# Adroit with binary rewards
python iql.py --dataset pen-binary-v0
python awac.py --dataset pen-binary-v0
python cql.py --dataset pen-binary-v0
python cal_ql.py --dataset pen-binary-v0
python iql.py --dataset door-binary-v0
python awac.py --dataset door-binary-v0
python cql.py --dataset door-binary-v0
python cal_ql.py --dataset door-binary-v0
python iql.py --dataset relocate-binary-v0
python awac.py --dataset relocate-binary-v0
python cql.py --dataset relocate-binary-v0
python cal_ql.py --dataset relocate-binary-v0

# Kitchen
python iql.py --dataset kitchen-complete-v0
python awac.py --dataset kitchen-complete-v0
python cql.py --dataset kitchen-complete-v0
python cal_ql.py --dataset kitchen-complete-v0
python iql.py --dataset kitchen-partial-v0
python awac.py --dataset kitchen-partial-v0
python cql.py --dataset kitchen-partial-v0
python cal_ql.py --dataset kitchen-partial-v0
python iql.py --dataset kitchen-mixed-v0
python awac.py --dataset kitchen-mixed-v0
python cql.py --dataset kitchen-mixed-v0
python cal_ql.py --dataset kitchen-mixed-v0
