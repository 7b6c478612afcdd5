export CONDA_EXE='/home/user/miniconda3/bin/conda'
