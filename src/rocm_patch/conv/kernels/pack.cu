// Weights [filter][channel][tap] to what gather.cu reads, [group][tap][reduced][row], rows padded with zeros. The tables say, for each tap
// of the source, where its slab begins (taps of different phases lie in different slabs).

struct Pack {
    const element *source;
    element *target;
    int filters, channels, taps;  // of one group
    int rows_padded, depth_padded;
    int forward;                  // rows are filters (forward) or channels (data gradient)
    int slab[MAX_TAPS];           // in elements of the target, for group 0
    int group_stride[MAX_TAPS];   // elements between groups in the slab of this tap
};

extern "C" __global__ void __launch_bounds__(256) pack(Pack p) {
    __shared__ element tile[32][33];
    const int group = blockIdx.z;
    const int width = p.channels * p.taps;
    const element *RESTRICT source = p.source + (long long)group * p.filters * width;
    const int lane = threadIdx.x % 32, line = threadIdx.x / 32;
    if (p.forward) {
        // 32 filters x 32 elements of (channel, tap), turned in local memory: both sides move in runs.
        int first_filter = blockIdx.y * 32, first = blockIdx.x * 32;
        for (int i = line; i < 32; i += 8) {
            int filter = first_filter + i, at = first + lane;
            tile[i][lane] = filter < p.filters && at < width ? source[(long long)filter * width + at] : narrow(0);
        }
        __syncthreads();
        for (int i = line; i < 32; i += 8) {
            int at = first + i, filter = first_filter + lane;
            if (at >= width || filter >= p.rows_padded) continue;
            int channel = at / p.taps, tap = at - channel * p.taps;
            p.target[p.slab[tap] + group * p.group_stride[tap] + (long long)channel * p.rows_padded + filter] = tile[lane][i];
        }
    } else {
        int row = blockIdx.x * 32 + lane;  // channel
        for (int filter = blockIdx.y * 8 + line; filter < p.filters; filter += gridDim.y * 8) {
            if (row >= p.rows_padded) continue;
            for (int tap = 0; tap < p.taps; tap++) {
                if (p.slab[tap] < 0) continue;
                element value = row < p.channels ? source[(long long)filter * width + row * p.taps + tap] : narrow(0);
                p.target[p.slab[tap] + group * p.group_stride[tap] + (long long)filter * p.rows_padded + row] = value;
            }
        }
    }
}
