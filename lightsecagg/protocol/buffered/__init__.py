"""The asynchronous pair: uploads at the clients' own pace, and lists of them that are decoded in one shot."""
