// Carries out one task of attention.
#pragma once

#include "_paired.h"
#include "_softmax.h"
#include "_widened.h"

namespace tw {

// Task `at` of a plan.
template <class Products>
void carry_out(Products& products, const Args& args, Plan& plan, int64_t at) {
    const Task& task = plan.tasks[at];
    const Task& next_task = at + 1 < static_cast<int64_t>(plan.tasks.size()) ? plan.tasks[at + 1] : task;
    const Place place = {args, task}, next_place = {args, next_task};
    products.load_queries(place);
    products.softmax().start(place);
    for (int64_t key = task.first_key, next = key; key < task.end_key; key = next) {
        next = key + kTileKeys;
        if (next < task.end_key)
            products.attend(place, key, place, next);
        else
            products.attend(place, key, next_place, next_task.first_key);
    }
    if (task.partial < 0)
        products.softmax().write(place);
    else
        products.softmax().write_partial(place, plan);
}

}  // namespace tw
