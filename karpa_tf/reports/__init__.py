"""What TensorBoard, a terminal and picture files show of figures."""
