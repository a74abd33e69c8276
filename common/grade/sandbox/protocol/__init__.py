"""Two processes that call each other's functions: the grader, which holds the checks, and the guest, which holds a
submission. Both ends run this code.

Values   numbers, texts, tensors, arrays, tuples, lists, dicts and named tuples are copied.
Objects  functions, networks, optimizers, iterators and context managers stay where they are; the other side gets a
         proxy whose calls travel back.
Shared   a tensor, list, dict or random generator of the grader that the guest changes in place is changed in the grader,
         too, whenever the two talk, and a tensor that the grader changes is changed in the guest.
Graphs   each process keeps its part of the autograd graph. A tensor that crosses becomes the output of `Gate` on the
         other side, whose backward asks the process that the tensor came from for the vector-Jacobian product.

Nothing that arrives is executed or unpickled: a message is JSON, and tensors are raw bytes with a dtype and a shape.
"""
