# .bashrc
if [ -f /etc/bashrc ]; then
    . /etc/bashrc
fi
# >>> conda initialize >>>
. /home/user/miniconda3/etc/profile.d/conda.sh
# <<< conda initialize <<<
