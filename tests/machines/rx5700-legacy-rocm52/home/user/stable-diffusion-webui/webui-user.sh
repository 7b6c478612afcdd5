#!/bin/bash
export COMMANDLINE_ARGS="--precision full --no-half --medvram"
#export TORCH_COMMAND="pip install torch==1.13.1+rocm5.2"
