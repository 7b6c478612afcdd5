#!/bin/bash
#########################################################
# Uncomment and change the variables below to your need:#
#########################################################
#export TORCH_COMMAND="pip install torch"
export COMMANDLINE_ARGS="--medvram"
export HSA_OVERRIDE_GFX_VERSION=10.3.0
venv_dir="/home/user/ComfyUI/venv"
