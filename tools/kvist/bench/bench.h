/* The parts of `kvist bench`: each has options of its own, all have one form of result (measure.h).
 *
 * argv[0] is the part's name; the answer is the command's exit code. A missed target is a finding,
 * not a failure: the code is 0. */
#ifndef KV_TOOLS_BENCH_H
#define KV_TOOLS_BENCH_H

int kv_bench_engine(int argc, char **argv);
int kv_bench_store(int argc, char **argv);
int kv_bench_codec(int argc, char **argv);
int kv_bench_attach(int argc, char **argv);
int kv_bench_wire(int argc, char **argv);
int kv_bench_pd(int argc, char **argv);
int kv_bench_serve(int argc, char **argv);
int kv_bench_report(int argc, char **argv);
int kv_bench_route(int argc, char **argv);

#endif
