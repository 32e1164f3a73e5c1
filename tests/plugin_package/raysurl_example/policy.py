from raysurl.views import Policy

GENTLE = Policy(crop=(0.8, 1.0))
