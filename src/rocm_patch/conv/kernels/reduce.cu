// Adds the sums of the splits, in one order whatever the timing. ORDER 0: result as the partial sums lie, plus a bias (forward, data
// gradient). ORDER 1: partial [filter][tap][channel] to weight gradient [filter][channel][tap].

struct Reduce {
    const real *partial;
    const element *bias;
    element *output;
    int size, splits;
    int channels, taps;       // ORDER 1
    Divisor pixels, rows;     // ORDER 0: pixels of one row; rows in all groups
    Divisor width, channels_; // ORDER 1: taps*channels, channels
};

extern "C" __global__ void __launch_bounds__(256) reduce(Reduce p) {
    int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= p.size) return;
    real sum = 0;
    for (int split = 0; split < p.splits; split++) sum += p.partial[(long long)split * p.size + at];
#if ORDER == 0
    if (p.bias) {
        unsigned int row = divided(at, p.pixels);
        sum += widen(p.bias[row - divided(row, p.rows) * p.rows.value]);
    }
    p.output[at] = narrow(sum);
#else
    unsigned int row = divided(at, p.width), rest = at - row * p.width.value;
    unsigned int tap = divided(rest, p.channels_), channel = rest - tap * p.channels_.value;
    p.output[(long long)row * p.width.value + channel * p.taps + tap] = narrow(sum);
#endif
}
